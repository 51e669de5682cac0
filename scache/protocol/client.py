"""The client's side of the conversation, sans-IO.

Each request is an exchange: a generator that yields steps and returns the outcome. A step is a
`Send`, or NEED_DATA: receive data, pass it to `ClientConversation.receive` and go on. The caller
of the generator owns the socket and the clock, and decides how to wait.
"""

from __future__ import annotations

import errno
import re
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from scache.errors import DescriptorLimit, NotNow, ProtocolError, Refused, TooOld
from scache.model import Status
from scache.protocol.batches import MAX_BATCH, batches
from scache.protocol.codec import (
    MAX_MESSAGE_SIZE,
    NEED_DATA,
    Attributes,
    NeedData,
    decode,
    decode_integer,
    encode,
)
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    GRAMMAR,
    HELLO,
    INLINE_VERSION,
    NAMES,
    PING,
    PURGE_ID,
    PURGED_NAMES,
    REFUSAL_NAMES,
    SHORTAGE_NAMES,
    STATS_NAMES,
    FindDest,
    FindEndp,
    Follow,
    Observation,
    Ping,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    SaveDest,
    SaveEndp,
    Snapshot,
    Stats,
    encode_request,
    read_features,
)
from scache.protocol.observation import Event, Missed, decode_observation


class Send(NamedTuple):
    """Send these bytes, with these descriptors attached to the first of them."""

    data: bytes
    descriptors: Sequence[int] = ()
    """They still belong to the caller that passed them to the exchange."""
    best_effort: bool = False
    """True if the exchange has succeeded already and a failure to send does not matter."""


class Hit(NamedTuple):
    """The reply to a find that hits; its descriptor is the first of `descriptors`."""

    properties: tuple[bytes, ...]
    """The properties of the binding, only for ``find_dest``, then those of the endpoint."""


Outcome = Hit | Status


class Reply(NamedTuple):
    """A reply whose attributes were checked."""

    status: Status
    properties: tuple[bytes, ...]


Step = Send | NeedData

NO_INLINE = "the server has no inline mode"
"""The text of the error if inline mode is needed. A daemon before ``shortage`` has none for clients
that it does not serve."""

MAX_REPLY_SIZE = 2 * MAX_MESSAGE_SIZE
"""Most bytes of a reply, which may hold the properties of two requests."""


class ClientConversation:
    """A client's side of one connection to scache(8) or to our daemon.

    The exchanges raise ProtocolError if the server violates the protocol. The conversation must
    not be used afterwards.
    """

    def __init__(self) -> None:
        self.inline = False
        """True if the server has granted inline mode."""
        self.features: frozenset[bytes] = frozenset()
        """The extensions that the server lists; the client must not use any other."""
        self.refusal: str | None = None
        """The server's reason for refusing inline mode; None if it gives none."""
        self._buffer = b""
        self._at = 0
        self.descriptors: deque[int] = deque()
        """Received descriptors, oldest first; the owner of the socket must close them."""
        self.due = 0
        """Descriptors that replies to the pending finds or snapshot may still bring."""
        self._truncated = False
        self._greeted = False

    def receive(self, data: bytes, *, truncated: bool = False) -> None:
        """Take the bytes of one recvmsg(2); the caller has appended to `descriptors` before.

        ``truncated`` is True if the kernel dropped descriptors (MSG_CTRUNC). The exchange uses the
        data and descriptors that have arrived, then raises DescriptorLimit instead of receiving
        more.
        """
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        self._truncated = self._truncated or truncated

    def hello(self) -> Generator[Step, None, None]:
        """Request inline mode; a server without it stays in the base protocol.

        Unknown attributes of the reply are ignored, because later servers may send some.
        """
        yield Send(HELLO)
        answer = yield from self._message()
        if answer and not _NAME.match(answer[0][0]):
            raise _foreign(answer[0][0])
        status = self._parse([pair for pair in answer if pair[0] == b"status"], 0).status
        self.inline = status is Status.OK and (b"version", INLINE_VERSION) in answer
        if self.inline:
            self.features = read_features(answer) or frozenset()
        elif tuple(name for name, _ in answer) == REFUSAL_NAMES:
            self.refusal = _text(answer[1][1])

    def save_endp(self, request: SaveEndp, descriptor: int) -> Generator[Step, None, Status]:
        """Save a connection; return the status."""
        yield Send(encode_request(request), (descriptor,) if self.inline else ())
        answer = yield from self._message()
        if not self.inline and answer == _DUMMY_ATTRIBUTES:
            yield Send(DESCRIPTOR_BYTE, (descriptor,))
            answer = yield from self._message()
        # The server refuses a malformed request before it asks for the descriptor.
        return self._parse(answer, 0).status

    def save_dest(self, request: SaveDest) -> Generator[Step, None, Status]:
        """Save a binding; return the status."""
        yield Send(encode_request(request))
        return (yield from self._reply(0)).status

    def find(
        self,
        requests: Sequence[FindEndp | FindDest],
        on_outcome: Callable[[Outcome], object],
    ) -> Generator[Step, None, None]:
        """Send all of these finds; in inline mode many are sent ahead of their replies.

        Each outcome is passed to ``on_outcome``. For a `Hit` it must remove the first of
        `descriptors`. It must not raise an exception.
        """
        for batch, messages in batches(requests, MAX_BATCH if self.inline else 1):
            self.due = len(batch) if self.inline else 0
            yield Send(messages)
            for at in batch:
                yield from self._outcome(requests[at], on_outcome)

    def save_many(
        self, requests: Sequence[SaveEndp | SaveDest], descriptors: Sequence[int]
    ) -> Generator[Step, None, list[Status]]:
        """Send all of these saves, which are of one kind; return the status of each.

        ``descriptors`` has one descriptor for each ``save_endp`` request.
        """
        statuses = []
        if not self.inline:
            for at, request in enumerate(requests):
                if isinstance(request, SaveEndp):
                    statuses.append((yield from self.save_endp(request, descriptors[at])))
                else:
                    statuses.append((yield from self.save_dest(request)))
            return statuses
        for batch, messages in batches(requests, MAX_BATCH):
            yield Send(messages, descriptors[batch.start : batch.stop])
            for _ in batch:
                statuses.append((yield from self._reply(0)).status)
        return statuses

    def snapshot(self) -> Generator[Step, None, None]:
        """Request a snapshot; its descriptor is then the first of `descriptors`."""
        self._require_inline()
        self.due = 1
        yield Send(encode_request(Snapshot()))
        self._granted((yield from self._message()), (b"status",))
        self._require_descriptor()
        self.due = 0

    def supports_ping(self) -> bool:
        """Return True if the server supports ``ping``; raise Refused if it refuses inline mode."""
        if self.refusal is not None:
            raise Refused(self.refusal)
        return self.inline and PING in self.features

    def ping(self, descriptor: int) -> Generator[Step, None, None]:
        """Send a descriptor to the server; the one that it returns is the only of `descriptors`."""
        self.due = 1
        yield Send(encode_request(Ping()), (descriptor,))
        self._granted((yield from self._message()), (b"status",))
        self._require_descriptor()
        if len(self.descriptors) > 1:
            raise ProtocolError("the server sent more than one descriptor with its reply to a ping")
        self.due = 0

    def purge_many(
        self, requests: Sequence[PurgeEndp | PurgeDest | PurgeId]
    ) -> Generator[Step, None, list[int]]:
        """Send these purges; return the number of rows that each has removed, up to PURGE_SLICE.

        Raises TooOld, and sends nothing, if the server does not support all of these requests.
        """
        self._require_inline()
        if PURGE_ID not in self.features and any(isinstance(each, PurgeId) for each in requests):
            raise TooOld(
                "the daemon is too old to purge a connection by its id; restart it with this "
                "version of scache, or purge by label"
            )
        counts = []
        for batch, messages in batches(requests, MAX_BATCH):
            yield Send(messages)
            for _ in batch:
                answer = yield from self._message()
                self._granted(answer, PURGED_NAMES)
                count = decode_integer(answer[1][1])
                if count is None:
                    raise ProtocolError(f"the server sent an invalid count: {answer!r}")
                counts.append(count)
        return counts

    def stats(self) -> Generator[Step, None, bytes]:
        """Request the figures of the server; return them in JSON. Raises TooOld."""
        yield from self._observe(Stats())
        answer = yield from self._message()
        self._granted(answer, STATS_NAMES)
        return answer[1][1]

    def follow(self, request: Follow) -> Generator[Step, None, None]:
        """Request the events from now on; then only `events` may be called. Raises TooOld."""
        yield from self._observe(request)
        self._granted((yield from self._message()), (b"status",))

    def events(self) -> Generator[Step, None, list[Event | Missed]]:
        """Wait for events; return all that have arrived, at least one."""
        arrived = [decode_observation((yield from self._message()))]
        while (message := self._next_message()) is not None:
            arrived.append(decode_observation(message))
        return arrived

    def _observe(self, request: Observation) -> Generator[Step, None, None]:
        self._require_inline()
        name = NAMES[type(request)]
        if name not in self.features:
            raise TooOld(
                f"the daemon is too old for {name.decode()}; restart it with this version of scache"
            )
        yield Send(encode_request(request))

    def _require_inline(self) -> None:
        if self.refusal is not None:
            raise Refused(self.refusal)
        if not self.inline:
            raise ProtocolError(NO_INLINE)

    def _granted(self, answer: Attributes, names: Sequence[bytes]) -> None:
        """Check the reply to a request that may be refused; raise Refused or NotNow then."""
        found = tuple(name for name, _ in answer)
        if found == REFUSAL_NAMES:
            raise Refused(_text(answer[1][1]))
        if found == SHORTAGE_NAMES:
            raise NotNow(_text(answer[1][1]), _text(answer[2][1]))
        if found != tuple(names) or answer[0][1] != b"0":
            raise ProtocolError(f"the server sent an unexpected reply: {answer!r}")

    def _outcome(
        self, request: FindEndp | FindDest, on_outcome: Callable[[Outcome], object]
    ) -> Generator[Step, None, None]:
        """Read the reply to a find, and receive the descriptor of a hit."""
        reply = yield from self._reply(GRAMMAR[NAMES[type(request)]].reply_properties)
        if reply.status is not Status.OK:
            self.due -= 1 if self.inline else 0
            on_outcome(reply.status)
            return
        if not self.inline:
            self.due = 1
            yield Send(DUMMY)
            while self._at == len(self._buffer):
                yield self._need_data()
            self._at += len(DESCRIPTOR_BYTE)
        self._require_descriptor()
        self.due -= 1
        on_outcome(Hit(reply.properties))
        if not self.inline:
            yield Send(DUMMY, best_effort=True)

    def _require_descriptor(self) -> None:
        if not self.descriptors:
            self._require_whole()
            raise ProtocolError("the server sent no descriptor with a reply that needs one")

    def _require_whole(self) -> None:
        if self._truncated:
            raise DescriptorLimit(
                errno.EMFILE,
                "cannot receive all descriptors of a reply: this process has reached its limit on "
                "open files; the remaining ones are lost; close files or raise the limit "
                "(ulimit -n)",
            )

    def _need_data(self) -> NeedData:
        """Return NEED_DATA; raise DescriptorLimit if the kernel dropped descriptors.

        After a dropped descriptor, replies and descriptors can no longer be matched.
        """
        self._require_whole()
        return NEED_DATA

    def _reply(self, properties: int) -> Generator[NeedData, None, Reply]:
        return self._parse((yield from self._message()), properties)

    def _parse(self, attributes: Attributes, properties: int) -> Reply:
        """Parse a reply; raise ProtocolError unless it has exactly the expected attributes."""
        names = [name for name, _ in attributes]
        if names != [b"status", *[b"property"] * properties]:
            raise ProtocolError(f"the server sent an unexpected reply: {attributes!r}")
        status = _STATUSES.get(decode_integer(attributes[0][1]))
        if status is None:
            raise ProtocolError(f"the server sent an unknown status: {attributes!r}")
        return Reply(status, tuple([value for _, value in attributes[1:]]))

    def _message(self) -> Generator[NeedData, None, Attributes]:
        """Wait for a message; skip the announcement, which not every server sends."""
        while (message := self._next_message()) is None:
            yield self._need_data()
        if self._greeted or encode(message) != ANNOUNCEMENT:
            return message
        self._greeted = True
        return (yield from self._message())

    def _next_message(self) -> Attributes | None:
        """Return the next message, or None if it is not complete yet."""
        message = decode(self._buffer, self._at)
        if message is None:
            size = len(self._buffer) - self._at
            if size > MAX_REPLY_SIZE:
                raise ProtocolError(
                    f"the server sent a message of more than {MAX_REPLY_SIZE} bytes"
                )
            # Without this check, a server of another protocol would seem to be slow.
            if size and not _NAME.match(self._buffer, self._at):
                raise _foreign(self._buffer[self._at :])
            return None
        attributes, self._at = message
        return attributes


_NAME = re.compile(rb"[\w.-]*+(?:\0|\Z)")
"""Matches the name of an attribute, or what has arrived of it."""

_SHOWN = 40
"""Most bytes of another protocol that an error shows."""


def _foreign(data: bytes) -> ProtocolError:
    return ProtocolError(f"the server sent {data[:_SHOWN]!r}, which begins no reply")


_STATUSES: dict[int | None, Status] = {status.value: status for status in Status}


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


_DUMMY_ATTRIBUTES: Attributes = [(b"dummy", b"")]
