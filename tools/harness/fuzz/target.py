"""What is fuzzed: both halves of the conversation, and what must hold whatever they are given."""

# Any exception that comes out of `check` is a bug, but for two that are caught here: ProtocolError
# (the peer broke the rules: ours to say, and the conversation ends) and Refused (the daemon said
# no to an administrator's request: the client's alone). A ValueError, an IndexError, a
# RecursionError or a failed assertion is never the peer's fault.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

from scache.errors import ProtocolError, Refused
from scache.model import Status
from scache.protocol.client import ClientConversation, Hit, Outcome, Send
from scache.protocol.codec import MAX_MESSAGE_SIZE, NEED_DATA, NUL, NeedData, decode
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    EMPTY_REPLY,
    GRAMMAR,
    HELLO_REPLY,
    HELLO_REPLY_WITH_FEATURES,
    PURGE_ID,
    STATUS_REPLY,
    Admin,
    FindDest,
    FindEndp,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    SaveDest,
    SaveEndp,
    Snapshot,
    encode_reply,
)
from scache.protocol.request_parser import Malformed
from scache.protocol.server import Event, Save, ServerConversation

# An input is one byte of flags, one byte that says how many pairs of bytes follow, these pairs,
# and the stream: what the peer sends. A pair is a piece of the stream: its size, and what comes
# with it. So the stream stays in one piece for whoever mutates it.

CLIENT = 1
"""Flag: the client's half is fuzzed, and the stream is what a server says."""
ANNOUNCE = 2
"""Flag of a server: it speaks first."""
PERMIT = 4
"""Flag of a server: administrators get what they ask for."""
STRETCH = 8
"""Flag: each `STRETCHED` byte of the stream stands for very many, so that limits are reached."""
STRETCHED = b"\x01"
STRETCH_TO = b"x" * 6000

MAX_PIECES = 64
MANY_SIZES = 16
"""Sizes from 256 - MANY_SIZES on count kilobytes."""
LOST = 0x40
"""In what comes with a piece: a descriptor that could not be received. A server's alone."""
MORE_TO_READ = 0x80
"""In what comes with a piece: more is there already, so nothing is surplus yet."""
COUNTS = (0, 0, 0, 1, 1, 2, 3, 253)
"""Descriptors that come with a piece, by the low bits of its second byte."""
EXCHANGE_SHIFT = 3
"""The bits above are, for a client, the exchange that it begins with that piece."""


class Broken(AssertionError):
    """An invariant does not hold."""


class Piece(NamedTuple):
    """What one recvmsg(2) brings."""

    data: bytes
    descriptors: int
    lost: bool
    more: bool


class Input(NamedTuple):
    """An input, read."""

    flags: int
    pieces: list[Piece]
    exchanges: list[int]

    @property
    def stream(self) -> bytes:
        """All bytes of the peer."""
        return b"".join(piece.data for piece in self.pieces)


def read(data: bytes) -> Input:
    """Read an input: any bytes are one."""
    flags, count = (data[0], data[1]) if len(data) > 1 else (0, 0)
    count = min(count, MAX_PIECES, max(0, len(data) - 2) // 2)
    controls, stream = data[2 : 2 + 2 * count], data[2 + 2 * count :]
    if flags & STRETCH:
        stream = stream.replace(STRETCHED, STRETCH_TO)
    pieces, exchanges, at = [], [], 0
    for size, what in zip(controls[::2], controls[1::2], strict=True):
        many = size >= 256 - MANY_SIZES
        piece = stream[at : at + ((size - 256 + MANY_SIZES) * 1024 if many else size)]
        at += len(piece)
        lost, more = bool(what & LOST), bool(what & MORE_TO_READ)
        pieces.append(Piece(piece, COUNTS[what & 7], lost, more))
        exchanges.append(what >> EXCHANGE_SHIFT)
    pieces.append(Piece(stream[at:], 0, lost=False, more=False))
    return Input(flags, pieces, exchanges)


def write(flags: int, pieces: Sequence[tuple[bytes, int]], exchanges: Sequence[int] = ()) -> bytes:
    """Return the input that says this: pieces with their numbers of descriptors."""
    controls, stream = bytearray(), bytearray()
    for at, (data, count) in enumerate(pieces[:MAX_PIECES]):
        size = min(len(data), 255 - MANY_SIZES)
        what = COUNTS.index(count) if count in COUNTS else COUNTS.index(253)
        if at < len(exchanges):
            what |= (exchanges[at] << EXCHANGE_SHIFT) & 0xFF
        controls += bytes((size, what))
        stream += data
    return bytes((flags, len(controls) // 2)) + bytes(controls) + bytes(stream)


def messages(data: bytes) -> Iterator[bytes]:
    """Yield the messages that one half has said, of which there are nothing but whole ones."""
    at = 0
    while at < len(data):
        message = decode(data, at)
        if message is None:
            raise Broken(f"it said something that is no message: {data[at:]!r}")
        yield data[at : message[1]]
        at = message[1]


def check(data: bytes) -> None:
    """Do with an input all that can be done, and insist on every invariant."""
    given = read(data)
    if given.flags & CLIENT:
        check_client(given)
    else:
        check_server(given)


# The server's half


class Served:
    """A server's conversation, answered as a session does, and its books."""

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
        """Feed all pieces, hang up, and check the books."""
        try:
            for piece in pieces:
                if piece.data:  # no bytes, no message, no descriptors
                    self._feed(piece)
        except ProtocolError:
            self.failed = True
        self.output += self.machine.data_to_send()
        self.out += self.machine.close()
        if self.machine.close():
            raise Broken("descriptors come out of close() twice")
        if sorted(self.out) != list(range(self.given)):
            doubled = [each for each, count in Counter(self.out).items() if count > 1]
            missing = set(range(self.given)) - set(self.out)
            raise Broken(f"descriptors: doubled {doubled}, leaked {sorted(missing)}")
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
                raise Broken("more events than the bytes can account for: it does not progress")
        if machine.next_event() is not NEED_DATA:
            raise Broken("it said that there is nothing more to say, and had something")
        self.output += machine.data_to_send()
        if not piece.more:
            self.out += machine.surplus_descriptors()

    def _answer(self, event: Event) -> None:
        machine, expect = self.machine, self.expected
        if not isinstance(event, Malformed | Save):
            self.events.append((type(event), *event))
        match event:
            case Save(request, descriptor):
                self.events.append(request)
                if descriptor is not None:
                    self.out.append(descriptor)
                status = Status.FAIL if descriptor is None else Status.OK
                expect += ([] if machine.inline else [DUMMY]) + [STATUS_REPLY[status]]
                machine.reply_status(status)
            case Malformed(name, descriptor):
                # Of a name that is too long a part may be known, which says as much.
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
            case Snapshot() | PurgeEndp() | PurgeDest() | PurgeId():
                self._answer_administrator(event)

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
            raise Broken(f"{request!r} in the base protocol")
        if not self._permit:
            self.machine.reply_refusal("no")
            self.expected.append(b"status\x002\0reason\0no\0\0")
        elif isinstance(request, Snapshot):
            self.machine.reply_status(Status.OK)
            self.expected.append(STATUS_REPLY[Status.OK])
        else:
            count = request.id % 2 if isinstance(request, PurgeId) else len(request[0])
            self.machine.reply_purged(count)
            self.expected.append(b"status\x000\0count\0%d\0\0" % count)

    def _check_output(self) -> None:
        """Insist on one reply for each request, in order, and on nothing else but dummies."""
        hellos = (HELLO_REPLY, HELLO_REPLY_WITH_FEATURES)
        said = [message for message in messages(self.output) if message not in hellos]
        if said[-1:] == [DUMMY] and len(said) == len(self.expected) + 1:
            said.pop()  # asks for a descriptor that has not come
        if said != self.expected:
            raise Broken(f"it said {said!r} where {self.expected!r} was due")


def check_server(given: Input) -> None:
    """Check a server's half: with descriptors, and that cutting the stream changes nothing."""
    Served(given.flags).run(given.pieces)
    cut, whole = Served(given.flags), Served(given.flags)
    cut.run([piece._replace(descriptors=0, lost=False) for piece in given.pieces])
    whole.run([Piece(given.stream, 0, lost=False, more=False)])
    if (cut.events, cut.failed) != (whole.events, whole.failed):
        raise Broken(f"cut, it gives {cut.events!r}; whole, {whole.events!r}")
    if cut.output != whole.output:
        raise Broken(f"cut, it says {cut.output!r}; whole, {whole.output!r}")
    if not cut.failed and cut.machine.between_exchanges != whole.machine.between_exchanges:
        raise Broken("cut and whole it owes different things")


# The client's half

Exchange = Generator[Any, None, Any]

MINE = 10**6
"""Descriptors from here on are the client's own, which it saves."""


Take = Callable[[Outcome], None]
"""Takes the outcome of a find, with its descriptor if it hit."""

_SAVE = SaveEndp(10, b"e", b"p")

EXCHANGES: dict[str, Callable[[ClientConversation, Iterator[int], Take], Exchange]] = {
    "hello": lambda client, _, __: client.hello(),
    "save_endp": lambda client, mine, _: client.save_endp(_SAVE, next(mine)),
    "save_dest": lambda client, _, __: client.save_dest(SaveDest(10, b"d", b"p", b"e")),
    "find_endp": lambda client, _, take: client.find([FindEndp(b"e")], take),
    "find_dest": lambda client, _, take: client.find([FindDest(b"d")], take),
    "save_many": lambda client, mine, _: client.save_many(
        [_SAVE, SaveEndp(0, b"", b"")], [next(mine), next(mine)]
    ),
    "find_many": lambda client, _, take: client.find([FindEndp(b"a"), FindEndp(b"b")], take),
    "snapshot": lambda client, _, __: client.snapshot(),
    "purge": lambda client, _, __: client.purge_many([PurgeEndp(b"e"), PurgeDest(b"d")]),
    "purge_ids": lambda client, _, __: client.purge_many([PurgeId(1), PurgeId(2**63 - 1)]),
}
"""What a client may begin."""

NUMBERS = {name: at for at, name in enumerate(EXCHANGES)}
_NAMES = list(EXCHANGES)


class Client:
    """A client's conversation, driven as our clients do, and its books."""

    def __init__(self) -> None:
        self.conversation = ClientConversation()
        self.outcomes: list[object] = []
        self.sent = b""
        self.given = 0
        self.out: list[int] = []
        self._steps = 0

    def run(self, exchanges: Sequence[int], pieces: Sequence[Piece]) -> None:
        """Go through the exchanges while there are pieces; hang up; check the books."""
        incoming = iter(pieces)
        mine = iter(range(MINE, 2 * MINE))
        limit = 20 * (len(exchanges) + len(pieces)) + 20
        try:
            for number in exchanges:
                name = _NAMES[number % len(_NAMES)]
                exchange = EXCHANGES[name](self.conversation, mine, self._take_find)
                if not self._drive(name, exchange, incoming, limit):
                    break
        except (ProtocolError, Refused) as error:
            self.outcomes.append(type(error))
        self.out += self.conversation.descriptors
        if sorted(self.out) != list(range(self.given)):
            raise Broken(f"given {self.given} descriptors, out came {sorted(self.out)}")
        for message in messages(self.sent):
            if message != DESCRIPTOR_BYTE and message[:5] not in (b"reque", b"dummy"):
                raise Broken(f"it sent something that is no request: {message!r}")

    def _take_find(self, outcome: Outcome) -> None:
        if isinstance(outcome, Hit):
            self.out.append(self.conversation.descriptors.popleft())
        self.outcomes.append(("find", outcome))

    def _drive(self, name: str, exchange: Exchange, incoming: Iterator[Piece], limit: int) -> bool:
        """Go through an exchange; return False if the stream ends before it."""
        try:
            while True:
                step = next(exchange)
                self._steps += 1
                if self._steps > limit:
                    raise Broken("it goes on and on without an end")
                if isinstance(step, Send):
                    self._send(step)
                elif not self._receive(incoming):
                    exchange.close()
                    return False
        except StopIteration as stop:
            self._take(name, stop.value)
            return True

    def _send(self, step: Send) -> None:
        if not step.data:
            raise Broken("nothing is to be sent")
        if not all(MINE <= each < 2 * MINE for each in step.descriptors):
            raise Broken(f"it sends descriptors that it was not given: {step.descriptors}")
        if b"request\0purge_id\0" in step.data and PURGE_ID not in self.conversation.features:
            raise Broken("it sends a request that the server has not listed")
        self.sent += step.data

    def _receive(self, incoming: Iterator[Piece]) -> bool:
        for piece in incoming:
            if piece.data:
                descriptors = range(self.given, self.given + piece.descriptors)
                self.given += piece.descriptors
                self.conversation.descriptors.extend(descriptors)
                self.conversation.receive(piece.data)
                return True
        return False

    def _take(self, name: str, outcome: object) -> None:
        if name == "snapshot":
            self.out.append(self.conversation.descriptors.popleft())
        self.outcomes.append((name, outcome))


def check_client(given: Input) -> None:
    """Check a client's half: descriptors, and that cutting the stream changes nothing."""
    exchanges = given.exchanges or [0, 1, 3]
    Client().run(exchanges, given.pieces)
    if len(given.stream) > MAX_MESSAGE_SIZE or NUL not in given.stream:
        return  # it gives a message without end up sooner when it comes in pieces
    enough = sum(piece.descriptors for piece in given.pieces)
    cut, whole = Client(), Client()
    pieces = [piece for piece in given.pieces if piece.data]
    pieces[0] = pieces[0]._replace(descriptors=enough)
    cut.run(exchanges, [pieces[0], *(each._replace(descriptors=0) for each in pieces[1:])])
    whole.run(exchanges, [pieces[0]._replace(data=given.stream)])
    if (cut.outcomes, cut.sent) != (whole.outcomes, whole.sent):
        raise Broken(f"cut, {cut.outcomes!r} come of it; whole, {whole.outcomes!r}")
