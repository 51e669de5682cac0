"""The server's half of the conversation: bytes and descriptors in, events out.

No socket, no clock, no cache: whoever owns those feeds what was received to
`ServerConversation.receive`, takes events from `next_event` until it says
NEED_DATA, answers each request before it asks for the next event, and sends
what `data_to_send` returns.

    state       the peer owes us                next
    ----------  ------------------------------  -------------------------------------
    IDLE        a request                       IDLE, DESCRIPTOR (save_endp),
                                                DUMMY (a find that hit)
    DESCRIPTOR  one byte with a descriptor      IDLE
    DUMMY       ``dummy``, to get a descriptor  RECEIPT
    RECEIPT     ``dummy``, having got it        IDLE

A client that says ``hello`` is in inline mode from then on, and stays IDLE: its
``save_endp`` carries the descriptor on the message itself, the reply to a find
that hits carries it on the reply, and there are no dummies.

Where a client breaks the rules, we do what the genuine program does, which
reads name by name and value by value: it gives up at the first token that is
not the expected one and looks for ``request`` from there on. Three things
differ on purpose. A descriptor that arrives together with its ``save_endp`` is
accepted. Requests sent ahead, while an exchange is under way, are kept and
answered in order. A message above MAX_MESSAGE_SIZE is malformed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from scache.errors import ProtocolError
from scache.model import Status
from scache.protocol.codec import MAX_MESSAGE_SIZE, NEED_DATA, NeedData, Tokens, decode_integer
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DUMMY,
    EMPTY_REPLY,
    GRAMMAR,
    HELLO_REPLY,
    STATUS_REPLY,
    FindDest,
    FindEndp,
    Grammar,
    Hello,
    Request,
    SaveDest,
    SaveEndp,
    encode_reply,
)


class Save(NamedTuple):
    """A whole ``save_endp``; answer with `reply_status`."""

    request: SaveEndp
    descriptor: int | None
    """Now the taker's to close; None if the client sent none."""


class Find(NamedTuple):
    """A find; answer with `reply_hit` or `reply_miss`."""

    request: FindEndp | FindDest


class Bind(NamedTuple):
    """A whole ``save_dest``; answer with `reply_status`."""

    request: SaveDest


class Malformed(NamedTuple):
    """A request that nobody can serve; it has been answered with status 1 already."""

    name: bytes
    """What it called itself."""


class Deliver(NamedTuple):
    """The client waits for the descriptor of its hit: send DESCRIPTOR_BYTE with it."""


class Delivered(NamedTuple):
    """The client has had time to take the descriptor: our copy is done with."""


class Abandoned(NamedTuple):
    """The client turned away from its hit before the descriptor was sent."""


Event = Save | Find | Bind | Malformed | Deliver | Delivered | Abandoned


class _State(Enum):
    IDLE = auto()
    DESCRIPTOR = auto()
    DUMMY = auto()
    RECEIPT = auto()


_DELIVER, _DELIVERED, _ABANDONED = Deliver(), Delivered(), Abandoned()

_DUMMY_TOKENS = 3
"""Its name, its value, and the end of the message."""

_MAX_HELD = 1000
"""Requests that a client may send ahead while it owes us an answer."""


class ServerConversation:
    """One client's conversation, in the base protocol of scache(8) or in inline mode."""

    def __init__(self, *, announce: bool = True) -> None:
        self.inline = False
        """Whether the client has asked for inline mode."""
        self._state = _State.IDLE
        self._tokens = Tokens()
        self._descriptors: deque[int] = deque()
        self._held: deque[Request | Malformed] = deque()
        self._saving: SaveEndp | None = None
        self._output = [ANNOUNCEMENT] if announce else []

    def receive(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Take what one recvmsg(2) brought; the descriptors are ours from here on."""
        self._descriptors.extend(descriptors)
        self._tokens.feed(data)

    def data_to_send(self) -> bytes:
        """Return what is to be sent now, and forget it."""
        output, self._output = self._output, []
        return b"".join(output)

    @property
    def between_exchanges(self) -> bool:
        """Whether the client owes us nothing, so that it may be silent for as long as it likes."""
        return self._state is _State.IDLE and self._tokens.empty and not self._held

    def surplus_descriptors(self) -> list[int]:
        """Return, to be closed, the descriptors that belong to no request.

        To be asked when all that the client has sent so far was received: then
        a descriptor that no ``save_endp`` took will never be asked for.
        """
        if not self._descriptors or not self.between_exchanges:
            return []
        return self.close()

    def close(self) -> list[int]:
        """Return, to be closed, every descriptor that was received and not passed on."""
        surplus = list(self._descriptors)
        self._descriptors.clear()
        return surplus

    def reply_status(self, status: Status) -> None:
        """Answer a save."""
        self._output.append(STATUS_REPLY[status])

    def reply_hit(self, *properties: bytes) -> None:
        """Answer a find that hit: the properties of the binding, if any, then the endpoint's.

        In inline mode the descriptor is to go with this reply, or before it;
        else a Deliver event asks for it.
        """
        self._output.append(encode_reply(Status.OK, *properties))
        if not self.inline:
            self._state = _State.DUMMY

    def reply_miss(self, request: FindEndp | FindDest) -> None:
        """Answer a find that found nothing."""
        self._output.append(EMPTY_REPLY[type(request)][Status.FAIL])

    def next_event(self) -> Event | NeedData:
        """Return what the client asks for next.

        Raises ProtocolError when the client has sent more requests ahead than
        we keep: the conversation cannot go on.
        """
        while True:
            event: Event | NeedData | None
            if self._state is _State.IDLE:
                request = self._held.popleft() if self._held else self._next_request()
                if isinstance(request, NeedData):
                    return NEED_DATA
                event = self._begin(request)
            elif self._state is _State.DESCRIPTOR:
                event = self._take_descriptor()
            else:
                event = self._take_dummy()
            if event is not None:
                return event

    def _begin(self, request: Request | Malformed) -> Event | None:
        """Turn a request into its event; None while a ``save_endp`` lacks its descriptor."""
        if isinstance(request, SaveEndp):
            if not self.inline:
                self._output.append(DUMMY)
            if self._descriptors:
                # In the base protocol it came early, and the byte that should have carried it
                # is an empty message to us.
                return Save(request, self._descriptors.popleft())
            if self.inline:
                return Save(request, None)
            self._saving = request
            self._state = _State.DESCRIPTOR
            return None
        if isinstance(request, Malformed):
            grammar = GRAMMAR.get(request.name)
            replies = STATUS_REPLY if grammar is None else EMPTY_REPLY[grammar.kind]
            self._output.append(replies[Status.BAD])
            return request
        if isinstance(request, Hello):
            self.inline = True
            self._output.append(HELLO_REPLY)
            return None
        return Bind(request) if isinstance(request, SaveDest) else Find(request)

    def _take_descriptor(self) -> Event | NeedData:
        if not self._tokens.take_byte():
            return NEED_DATA
        assert self._saving is not None
        request, self._saving = self._saving, None
        self._state = _State.IDLE
        return Save(request, self._descriptors.popleft() if self._descriptors else None)

    def _take_dummy(self) -> Event | NeedData | None:
        """Read on for the dummy; None when a request came instead, which is kept for later."""
        tokens = self._tokens
        sent = self._state is _State.RECEIPT
        first = tokens.complete[tokens.at] if tokens.at < len(tokens.complete) else None
        if first == b"request" and not sent:
            request = self._next_request()
            if isinstance(request, NeedData):
                return NEED_DATA
            if len(self._held) == _MAX_HELD:
                raise ProtocolError("too many requests sent ahead")
            self._held.append(request)
            return None
        came = first == b"dummy"
        if first is None or (came and len(tokens.complete) - tokens.at < _DUMMY_TOKENS):
            if tokens.size <= MAX_MESSAGE_SIZE:
                return NEED_DATA
            came = False
        if came:
            tokens.at += _DUMMY_TOKENS
        self._state = _State.RECEIPT if came and not sent else _State.IDLE
        if sent:
            return _DELIVERED
        return _DELIVER if came else _ABANDONED

    def _next_request(self) -> Request | Malformed | NeedData:
        """Parse the next request, passing over whatever is none."""
        tokens = self._tokens
        try:
            tokens.at = tokens.complete.index(b"request", tokens.at)
        except ValueError:
            tokens.forget()
            return NEED_DATA
        if tokens.at + 1 == len(tokens.complete):
            return self._wait_for_more(b"")
        name = tokens.complete[tokens.at + 1]
        grammar = GRAMMAR.get(name)
        if grammar is None:
            tokens.at += 2
            return Malformed(name)
        return self._parse(name, grammar)

    def _parse(self, name: bytes, grammar: Grammar) -> Request | Malformed | NeedData:
        """Parse the request that begins where we read on, and is of this grammar."""
        tokens = self._tokens
        start, end = tokens.at, len(tokens.complete)
        values: list[int | bytes] = []
        at = start + 2
        lives = True
        for expected in grammar.names:
            if at < end and tokens.complete[at] != expected:
                tokens.at = at + 1
                return Malformed(name)
            if at + 1 >= end:
                return self._wait_for_more(name)
            value = tokens.complete[at + 1]
            at += 2
            if expected != b"ttl":
                values.append(value)
                continue
            ttl = decode_integer(value)
            if ttl is None:
                tokens.at = at
                return Malformed(name)
            values.append(ttl)
            lives = ttl > 0
        if at == end:
            return self._wait_for_more(name)
        # The genuine program looks at this token no more than we do: empty, the message ends;
        # not empty, there is an attribute too many, which it passes over.
        tokens.at = at + 1
        size = sum(map(len, tokens.complete[start : at + 1])) + at + 1 - start
        if not lives or size > MAX_MESSAGE_SIZE:
            return Malformed(name)
        return grammar.kind._make(values)

    def _wait_for_more(self, name: bytes) -> NeedData | Malformed:
        """Wait for the rest of a message, unless it is too long already."""
        if self._tokens.size <= MAX_MESSAGE_SIZE:
            return NEED_DATA
        self._tokens.forget()
        return Malformed(name)
