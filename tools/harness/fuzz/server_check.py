"""The server's half of the protocol under arbitrary input, and its invariants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.fuzz.inputs import ANNOUNCE, PERMIT, Input, Piece
from harness.fuzz.invariants import InvariantError, messages
from scache.errors import ProtocolError
from scache.model import Status
from scache.protocol.codec import NEED_DATA, NeedData
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DUMMY,
    EMPTY_REPLY,
    GRAMMAR,
    HELLO_REPLY,
    HELLO_REPLY_WITH_FEATURES,
    STATUS_REPLY,
    Admin,
    FindDest,
    FindEndp,
    Follow,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    SaveDest,
    Snapshot,
    Stats,
    encode_reply,
)
from scache.protocol.request_parser import Malformed
from scache.protocol.server import ServerConversation
from scache.protocol.server_events import Event, Pinged, Save


class ServerRun:
    """A server's conversation, answered as a session does, with a record of all it produced."""

    def __init__(self, flags: int) -> None:
        self._permit = bool(flags & PERMIT)
        self.machine = ServerConversation(announce=bool(flags & ANNOUNCE))
        self.events: list[object] = []
        self.output = b""
        self.expected: list[bytes] = [ANNOUNCEMENT] if flags & ANNOUNCE else []
        self.failed = False
        self.given = 0
        self.out: list[int] = []
        self._bytes = 0

    def run(self, pieces: Sequence[Piece]) -> None:
        """Feed all pieces, hang up, and check descriptors and output."""
        try:
            for piece in pieces:
                if piece.data:  # no bytes, no message, no descriptors
                    self._feed(piece)
        except ProtocolError:
            self.failed = True
        self.output += self.machine.data_to_send()
        self.out += self.machine.close()
        if self.machine.close():
            raise InvariantError("descriptors come out of close() twice")
        if sorted(self.out) != list(range(self.given)):
            doubled = [each for each, count in Counter(self.out).items() if count > 1]
            missing = set(range(self.given)) - set(self.out)
            raise InvariantError(f"descriptors: doubled {doubled}, leaked {sorted(missing)}")
        self._check_output()

    def _feed(self, piece: Piece) -> None:
        machine = self.machine
        descriptors = range(self.given, self.given + piece.descriptors)
        self.given += piece.descriptors
        machine.receive(piece.data, descriptors, lost=piece.lost)
        self._bytes += len(piece.data)
        while machine.unread:
            event = machine.next_event()
            if isinstance(event, NeedData):
                break
            self._answer(event)
            if len(self.events) > 2 * self._bytes:
                raise InvariantError("more events than the bytes can account for: no progress")
        if machine.next_event() is not NEED_DATA:
            raise InvariantError("next_event() reported that data is needed, and then had an event")
        self.output += machine.data_to_send()
        if not piece.more:
            self.out += machine.surplus_descriptors()

    def _answer(self, event: Event) -> None:
        machine, expect = self.machine, self.expected
        if not isinstance(event, Malformed | Save | Pinged):
            self.events.append((type(event), *event))
        match event:
            case Save() | Pinged():
                self._answer_carrier(event)
            case Malformed(name, descriptor):
                # The parser may know only a part of a name that is too long.
                self.events.append(name if name in GRAMMAR else None)
                if descriptor is not None:
                    self.out.append(descriptor)
                grammar = GRAMMAR.get(name)
                replies = STATUS_REPLY if grammar is None else EMPTY_REPLY[grammar.kind]
                expect.append(replies[Status.BAD])
            case SaveDest():
                expect.append(STATUS_REPLY[Status.OK])
                machine.reply_status(Status.OK)
            case FindEndp() | FindDest():
                self._answer_find(event)
            case Snapshot() | PurgeEndp() | PurgeDest() | PurgeId() | Stats() | Follow():
                self._answer_administrator(event)

    def _answer_carrier(self, event: Save | Pinged) -> None:
        """Answer a request that carries a descriptor."""
        machine = self.machine
        if isinstance(event, Pinged) and not machine.inline:
            raise InvariantError("a ping in the base protocol")
        self.events.append(event.request if isinstance(event, Save) else Pinged)
        if event.descriptor is not None:
            self.out.append(event.descriptor)
        status = Status.FAIL if event.descriptor is None else Status.OK
        self.expected += ([] if machine.inline else [DUMMY]) + [STATUS_REPLY[status]]
        machine.reply_status(status)

    def _answer_find(self, request: FindEndp | FindDest) -> None:
        (label,) = request
        if label[:1] not in (b"h", b"p", b"\xff"):
            self.expected.append(EMPTY_REPLY[type(request)][Status.FAIL])
            self.machine.reply_miss(request)
            return
        properties = (b"to", label) if isinstance(request, FindDest) else (label,)
        self.expected.append(encode_reply(Status.OK, *properties))
        self.machine.reply_hit(*properties)

    def _answer_administrator(self, request: Admin) -> None:
        if not self.machine.inline:
            raise InvariantError(f"{request!r} in the base protocol")
        if not self._permit:
            self.machine.reply_refusal("no")
            self.expected.append(b"status\x002\0reason\0no\0\0")
        elif isinstance(request, Snapshot | Stats | Follow):
            self.machine.reply_status(Status.OK)
            self.expected.append(STATUS_REPLY[Status.OK])
        else:
            count = request.id % 2 if isinstance(request, PurgeId) else len(request[0])
            self.machine.reply_purged(count)
            self.expected.append(b"status\x000\0count\0%d\0\0" % count)

    def _check_output(self) -> None:
        """Check that each request has one reply, in order, and that only dummies come besides."""
        hellos = (HELLO_REPLY, HELLO_REPLY_WITH_FEATURES)
        said = [message for message in messages(self.output) if message not in hellos]
        if said[-1:] == [DUMMY] and len(said) == len(self.expected) + 1:
            said.pop()  # this dummy asks for a descriptor that has not come
        if said != self.expected:
            raise InvariantError(f"the replies are {said!r} instead of {self.expected!r}")


def check_server(parsed: Input) -> None:
    """Check a server with descriptors; check also that cutting the stream changes nothing."""
    ServerRun(parsed.flags).run(parsed.pieces)
    cut, whole = ServerRun(parsed.flags), ServerRun(parsed.flags)
    cut.run([piece._replace(descriptors=0, lost=False) for piece in parsed.pieces])
    whole.run([Piece(parsed.stream, 0, lost=False, more=False)])
    if (cut.events, cut.failed) != (whole.events, whole.failed):
        raise InvariantError(f"events: {cut.events!r} if cut, {whole.events!r} if whole")
    if cut.output != whole.output:
        raise InvariantError(f"output: {cut.output!r} if cut, {whole.output!r} if whole")
    if not cut.failed and cut.machine.between_exchanges != whole.machine.between_exchanges:
        raise InvariantError("between_exchanges differs if the stream is cut")
