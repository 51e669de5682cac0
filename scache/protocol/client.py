"""The client's half of the conversation, sans-IO.

Each request is an exchange: a generator that yields what to do next, either a
`Send` or NEED_DATA (receive something, give it to `ClientConversation.receive`,
go on), and returns the outcome. Whoever drives it owns the socket, the clock
and the way of waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import NamedTuple

from scache.errors import ProtocolError
from scache.model import Status
from scache.protocol.codec import (
    MAX_MESSAGE_SIZE,
    NEED_DATA,
    Attributes,
    NeedData,
    Tokens,
    decode_integer,
    encode,
)
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    GRAMMAR,
    NAMES,
    FindDest,
    FindEndp,
    SaveDest,
    SaveEndp,
    encode_request,
)


class Send(NamedTuple):
    """Send these bytes, with this descriptor attached to the first of them."""

    data: bytes
    descriptor: int | None = None
    """Stays the owner's who gave it to the exchange."""


class Hit(NamedTuple):
    """What a find has brought."""

    properties: tuple[bytes, ...]
    """Of the binding, for ``find_dest`` alone, and of the endpoint."""
    descriptor: int
    """Now the taker's to close."""


class Reply(NamedTuple):
    """A reply, its closed set of attributes checked."""

    status: Status
    properties: tuple[bytes, ...]


class ClientConversation:
    """A client's side of one connection to scache(8) or to our daemon.

    The exchanges raise ProtocolError when the server breaks the rules; the
    conversation cannot go on after that.
    """

    def __init__(self) -> None:
        self._tokens = Tokens()
        self._descriptors: deque[int] = deque()
        self._greeted = False

    def receive(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Take what one recvmsg(2) brought; the descriptors are ours from here on."""
        self._tokens.feed(data)
        self._descriptors.extend(descriptors)

    def close(self) -> list[int]:
        """Return, to be closed, every descriptor that was received and not passed on."""
        surplus = list(self._descriptors)
        self._descriptors.clear()
        return surplus

    def save_endp(
        self, request: SaveEndp, descriptor: int
    ) -> Generator[Send | NeedData, None, Status]:
        """Save a connection; return the status."""
        yield Send(encode_request(request))
        answer = yield from self._message()
        if answer != [(b"dummy", b"")]:
            # A malformed request is refused before its descriptor is asked for.
            return self._parse(answer, 0).status
        yield Send(DESCRIPTOR_BYTE, descriptor)
        return (yield from self._reply(0)).status

    def save_dest(self, request: SaveDest) -> Generator[Send | NeedData, None, Status]:
        """Save a binding; return the status."""
        yield Send(encode_request(request))
        return (yield from self._reply(0)).status

    def find(self, request: FindEndp | FindDest) -> Generator[Send | NeedData, None, Hit | Status]:
        """Find a connection; return it, or the status if there is none."""
        yield Send(encode_request(request))
        reply = yield from self._reply(GRAMMAR[NAMES[type(request)]].reply_properties)
        if reply.status is not Status.OK:
            return reply.status
        yield Send(DUMMY)
        while not self._tokens.take_byte():
            yield NEED_DATA
        if not self._descriptors:
            raise ProtocolError("the server sent no descriptor, or this process can open no more")
        hit = Hit(reply.properties, self._descriptors.popleft())
        yield Send(DUMMY)
        return hit

    def _reply(self, properties: int) -> Generator[NeedData, None, Reply]:
        return self._parse((yield from self._message()), properties)

    def _parse(self, attributes: Attributes, properties: int) -> Reply:
        """Check that a reply has the attributes that it must have, and no other."""
        names = [name for name, _ in attributes]
        if names != [b"status", *[b"property"] * properties]:
            raise ProtocolError(f"the server sent a reply that makes no sense: {attributes!r}")
        number = decode_integer(attributes[0][1])
        if number not in list(Status):
            raise ProtocolError(f"the server sent a status that nobody knows: {attributes!r}")
        return Reply(Status(number), tuple(value for _, value in attributes[1:]))

    def _message(self) -> Generator[NeedData, None, Attributes]:
        """Wait for a message, passing over the announcement, which not every server makes."""
        while (message := self._next_message()) is None:
            yield NEED_DATA
        if self._greeted or encode(message) != ANNOUNCEMENT:
            return message
        self._greeted = True
        return (yield from self._message())

    def _next_message(self) -> Attributes | None:
        """Return the next message if all of it has been received."""
        tokens = self._tokens
        names = tokens.complete[tokens.at :: 2]
        if b"" not in names:
            if tokens.size > MAX_MESSAGE_SIZE:
                raise ProtocolError("the server sent a message without end")
            return None
        count = names.index(b"")
        values = tokens.complete[tokens.at + 1 :: 2]
        tokens.at += 2 * count + 1
        return list(zip(names[:count], values, strict=False))
