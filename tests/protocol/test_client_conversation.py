"""The client's side of the conversation, without a socket, alone and with the server's side."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scache.errors import DescriptorLimit, ProtocolError
from scache.model import Status
from scache.protocol.client import MAX_REPLY_SIZE, ClientConversation, Hit, Send
from scache.protocol.codec import NEED_DATA, NeedData, encode
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    FindDest,
    FindEndp,
    PurgeId,
    Request,
    SaveDest,
    SaveEndp,
    encode_reply,
    encode_request,
)
from scache.protocol.server import ServerConversation
from scache.protocol.server_events import Deliver, Save
from tests.support.machines import Chunk, byte_by_byte, values

SAVE = SaveEndp(10, b"endpoint", b"properties")
BIND = SaveDest(10, b"destination", b"properties", b"endpoint")
FIND_ENDP = FindEndp(b"endpoint")
FIND_DEST = FindDest(b"destination")
OK, BAD, FAIL = map(encode_reply, Status)

MINE = 5
"""The descriptor that a client saves."""

T = TypeVar("T")


class Taken(NamedTuple):
    """A hit with its descriptor."""

    properties: tuple[bytes, ...]
    descriptor: int


Outcome = Taken | Status
Exchange = Generator[Send | NeedData, None, Outcome]


def begin(machine: ClientConversation, request: Request, descriptor: int = MINE) -> Exchange:
    """Begin the exchange for a request."""
    match request:
        case SaveEndp():
            return machine.save_endp(request, descriptor)
        case SaveDest():
            return machine.save_dest(request)
        case FindEndp() | FindDest():
            return find(machine, request)
        case _:
            raise TypeError(request)


def find(machine: ClientConversation, request: FindEndp | FindDest) -> Exchange:
    """Find one connection; take its descriptor at once."""
    outcomes: list[Outcome] = []

    def take(outcome: Hit | Status) -> None:
        if isinstance(outcome, Hit):
            outcomes.append(Taken(outcome.properties, machine.descriptors.popleft()))
        else:
            outcomes.append(outcome)

    yield from machine.find([request], take)
    return outcomes[0]


def receive(machine: ClientConversation, chunk: Chunk) -> None:
    """Pass the result of one recvmsg(2) to the conversation."""
    data, descriptors = chunk
    machine.descriptors.extend(descriptors)
    machine.receive(data)


def run(
    machine: ClientConversation, request: Request, received: Iterator[Chunk]
) -> tuple[list[Send], Outcome]:
    """Carry out an exchange with a server that sends ``received``.

    Return the steps of the client that send, and the outcome. Raises EndOfScriptError if the client
    waits for more data.
    """
    exchange = begin(machine, request)
    sent: list[Send] = []
    while True:
        try:
            step = next(exchange)
        except StopIteration as end:
            return sent, end.value
        if isinstance(step, Send):
            sent.append(step)
        elif (chunk := next(received, None)) is None:
            raise EndOfScriptError
        else:
            receive(machine, chunk)


class EndOfScriptError(Exception):
    """The client waits for more data than the server sends."""


class Case(NamedTuple):
    """An exchange: the data that the server sends, the steps of the client, and the outcome."""

    request: Request
    received: list[Chunk]
    sent: list[Send]
    """The steps after the request itself."""
    outcome: Outcome


CASES = [
    Case(BIND, [(OK, ())], [], Status.OK),
    Case(BIND, [(BAD, ())], [], Status.BAD),
    Case(SAVE, [(DUMMY, ()), (OK, ())], [Send(DESCRIPTOR_BYTE, (MINE,))], Status.OK),
    Case(SAVE, [(DUMMY, ()), (FAIL, ())], [Send(DESCRIPTOR_BYTE, (MINE,))], Status.FAIL),
    Case(SAVE, [(BAD, ())], [], Status.BAD),
    Case(FIND_ENDP, [(encode_reply(Status.FAIL, b""), ())], [], Status.FAIL),
    Case(FIND_DEST, [(encode_reply(Status.FAIL, b"", b""), ())], [], Status.FAIL),
    Case(
        FIND_ENDP,
        [(encode_reply(Status.OK, b""), ()), (DESCRIPTOR_BYTE, (7,))],
        [Send(DUMMY), Send(DUMMY, best_effort=True)],
        Taken((b"",), 7),
    ),
    Case(
        FIND_DEST,
        [(encode_reply(Status.OK, b"status", b"\xff\n"), ()), (DESCRIPTOR_BYTE, (7,))],
        [Send(DUMMY), Send(DUMMY, best_effort=True)],
        Taken((b"status", b"\xff\n"), 7),
    ),
]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_exchange_has_the_same_outcome_for_any_chunking(case: Case, announced: bool) -> None:
    """The reply comes whole, byte by byte, or together with the next reply."""
    greeting: list[Chunk] = [(ANNOUNCEMENT, ())] if announced else []
    *before, (last, descriptors) = case.received
    with_tail = [*before, (last + OK, descriptors)]
    glued = [(ANNOUNCEMENT * announced + case.received[0][0], ()), *case.received[1:]]
    for received in (case.received, with_tail):
        for chunks in ([*greeting, *received], byte_by_byte([*greeting, *received])):
            check(case, chunks, tail=received is with_tail)
    check(case, glued, tail=False)


def check(case: Case, chunks: Iterable[Chunk], *, tail: bool) -> None:
    """Check an exchange with the server's data in these chunks."""
    machine, received = ClientConversation(), iter(chunks)
    sent, outcome = run(machine, case.request, received)
    assert sent == [Send(encode_request(case.request)), *case.sent]
    assert outcome == case.outcome
    if tail:
        assert run(machine, BIND, received)[1] is Status.OK
    assert list(received) == []
    assert not machine.descriptors


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (BIND, encode([])),
        (BIND, encode([(b"status", b"abc")])),
        (BIND, encode([(b"status", b"3")])),
        (BIND, encode([(b"status", b"-1")])),
        (BIND, encode([(b"status", b"0"), (b"property", b"")])),
        (BIND, encode([(b"result", b"0")])),
        (BIND, DUMMY),
        (BIND, ANNOUNCEMENT * 2),
        (BIND, encode([(b"protocol", b"other_protocol")])),
        (SAVE, OK + DUMMY),
        (SAVE, DUMMY + DUMMY),
        (SAVE, encode([(b"dummy", b"x")])),
        (FIND_ENDP, OK),
        (FIND_ENDP, FAIL),
        (FIND_ENDP, encode_reply(Status.OK, b"", b"")),
        (FIND_ENDP, encode([(b"property", b""), (b"status", b"0")])),
        (FIND_ENDP, encode_reply(Status.OK, b"no descriptor follows") + DESCRIPTOR_BYTE),
        (FIND_DEST, encode_reply(Status.OK, b"")),
        (FIND_DEST, encode_reply(Status.OK, b"", b"", b"")),
    ],
)
def test_unexpected_reply_is_a_protocol_error(request_: Request, reply: bytes) -> None:
    """Such replies have missing, surplus or unknown attributes, or an unknown status."""
    if (request_, reply) == (SAVE, OK + DUMMY):
        # A bare status refuses a malformed save. The dummy is then the reply to the next request.
        machine, received = ClientConversation(), iter([(reply, ())])
        assert run(machine, SAVE, received)[1] is Status.OK
        with pytest.raises(ProtocolError):
            run(machine, BIND, received)
        return
    for chunks in ([(reply, ())], byte_by_byte([(reply, ())])):
        with pytest.raises(ProtocolError):
            run(ClientConversation(), request_, iter(chunks))


@pytest.mark.parametrize("piece", [b"x" * 65536, b"x\0" * 32768])
def test_endless_reply_is_a_protocol_error(piece: bytes) -> None:
    """It is raised when the message is longer than MAX_REPLY_SIZE."""
    chunks: list[Chunk] = [(piece, ())] * 10
    received = iter(chunks)
    with pytest.raises(ProtocolError):
        run(ClientConversation(), BIND, received)
    taken = len(chunks) - len(list(received))
    assert (taken - 1) * len(piece) <= MAX_REPLY_SIZE < taken * len(piece)


@pytest.mark.parametrize(
    "greeting",
    [b"220 mail.example.org ESMTP\r\n", b"-ERR unknown command\r\n", b"HTTP/1.1 400 Bad", b"\x83"],
)
def test_beginning_of_another_protocol_is_a_protocol_error(greeting: bytes) -> None:
    """It is raised before the message is complete, so that the client does not wait for more."""
    machine = ClientConversation()
    with pytest.raises(ProtocolError, match="which begins no reply"):
        run(machine, BIND, iter([(ANNOUNCEMENT, ()), (greeting, ())]))


def test_whole_message_of_another_protocol_is_a_protocol_error() -> None:
    """It is judged as its beginning is, although hello ignores attributes that it does not know."""
    machine = ClientConversation()
    exchange = machine.hello()
    next(exchange)
    machine.receive(b"\x83\0x\0status\x000\0\0")
    with pytest.raises(ProtocolError, match="which begins no reply"):
        next(exchange)


def test_conversation_receives_nothing_after_the_kernel_dropped_descriptors() -> None:
    """A reply without its descriptor would take the descriptor of the next reply."""
    machine, outcomes = ClientConversation(), list[Hit | Status]()
    machine.inline = True
    exchange = machine.find([FIND_ENDP] * 3, outcomes.append)
    next(exchange)
    assert next(exchange) is NEED_DATA
    miss, hit = encode_reply(Status.FAIL, b""), encode_reply(Status.OK, b"")
    machine.receive(miss + hit[:-1], truncated=True)
    with pytest.raises(DescriptorLimit):
        next(exchange)
    assert outcomes == [Status.FAIL]


@given(
    st.sampled_from([SAVE, BIND, FIND_ENDP, FIND_DEST]),
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([ANNOUNCEMENT, DUMMY, OK, FAIL, encode_reply(Status.OK, b"")]),
                st.binary(min_size=1, max_size=8),
            ),
            st.integers(0, 3),
        )
    ),
)
def test_any_bytes_with_any_descriptors(
    request_: Request, received: list[tuple[bytes, int]]
) -> None:
    """Only ProtocolError is raised, and each descriptor comes out exactly once."""
    machine = ClientConversation()
    fed: list[int] = []

    def chunks() -> Iterator[Chunk]:
        for data, count in received:
            numbers = tuple(range(len(fed), len(fed) + count))
            fed.extend(numbers)
            yield data, numbers

    out: list[int] = []
    try:
        _, outcome = run(machine, request_, chunks())
        out = [outcome.descriptor] if isinstance(outcome, Taken) else []
    except (ProtocolError, EndOfScriptError):
        pass
    assert sorted([*out, *machine.descriptors]) == fed


class Model:
    """A minimal model of the cache."""

    def __init__(self) -> None:
        self.connections: dict[bytes, deque[tuple[bytes, int]]] = {}
        self.bindings: dict[tuple[bytes, bytes, bytes], None] = {}

    def save(self, request: SaveEndp, descriptor: int) -> None:
        """Park a connection."""
        parked = self.connections.setdefault(request.endpoint, deque())
        parked.append((request.properties, descriptor))

    def bind(self, request: SaveDest) -> None:
        """Add a binding."""
        self.bindings[request.destination, request.endpoint, request.properties] = None

    def find(self, request: FindEndp | FindDest) -> tuple[Sequence[bytes], int] | None:
        """Take a connection; return its properties and its descriptor."""
        if isinstance(request, FindEndp):
            parked = self.connections.get(request.endpoint)
            if not parked:
                return None
            properties, descriptor = parked.popleft()
            return (properties,), descriptor
        for destination, endpoint, of_binding in self.bindings:
            if destination == request.destination and self.connections.get(endpoint):
                properties, descriptor = self.connections[endpoint].popleft()
                return (of_binding, properties), descriptor
        return None


class Conversation:
    """A client's conversation connected to a server's, which serves from a `Model`."""

    def __init__(self, cut: Callable[[bytes], int]) -> None:
        self.client, self.server = ClientConversation(), ServerConversation()
        self.model = Model()
        self._cut = cut
        self._in_delivery: list[int] = []
        self._to_client: list[Chunk] = [(self.server.data_to_send(), ())]

    def run(self, exchange: Generator[Send | NeedData, None, T]) -> T:
        """Carry out an exchange of the client; return its outcome."""
        while True:
            try:
                step = next(exchange)
            except StopIteration as end:
                outcome: T = end.value
                return outcome
            if isinstance(step, Send):
                self._serve(step.data, tuple(step.descriptors))
            else:
                receive(self.client, self._to_client.pop(0))

    def _serve(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        for chunk in self._in_pieces(data, descriptors):
            self.server.receive(*chunk)
            while not isinstance(event := self.server.next_event(), NeedData):
                self._answer(event)
        self._send()

    def _send(self) -> None:
        delivered: tuple[int, ...] = ()
        if self.server.inline:
            delivered, self._in_delivery = tuple(self._in_delivery), []
        self._to_client += self._in_pieces(self.server.data_to_send(), delivered)

    def _answer(self, event: object) -> None:
        match event:
            case Save(request, descriptor):
                assert descriptor is not None
                self.model.save(request, descriptor)
                self.server.reply_status(Status.OK)
            case FindEndp() | FindDest() as request:
                found = self.model.find(request)
                if found is None:
                    self.server.reply_miss(request)
                else:
                    self.server.reply_hit(*found[0])
                    self._in_delivery.append(found[1])
            case Deliver():
                self._send()
                self._to_client.append((DESCRIPTOR_BYTE, (self._in_delivery.pop(),)))
            case SaveDest() as request:
                self.model.bind(request)
                self.server.reply_status(Status.OK)
            case PurgeId(number):
                self.server.reply_purged(number % 2)

    def _in_pieces(self, data: bytes, descriptors: tuple[int, ...]) -> Iterable[Chunk]:
        while data:
            size = self._cut(data)
            yield data[:size], descriptors
            data, descriptors = data[size:], ()


labels = st.sampled_from([b"", b"a", b"b\n\xff"])
all_requests = st.one_of(
    st.builds(SaveEndp, st.integers(1, 300), labels, values),
    st.builds(SaveDest, st.integers(1, 300), labels, values, labels),
    st.builds(FindEndp, labels),
    st.builds(FindDest, labels),
)


Cut = Callable[[bytes], int]
"""Returns the size of the next chunk of these bytes."""


def random_cut(seed: int) -> Cut:
    """Return a function that cuts chunks of random sizes."""
    choice = random.Random(seed)
    return lambda piece: choice.randint(1, len(piece))


cuts = st.one_of(st.sampled_from((lambda _: 1, len)), st.builds(random_cut, st.integers(0)))


@given(st.lists(all_requests), st.booleans(), cuts)
def test_client_and_server_agree_for_any_requests(
    requests: list[Request], inline: bool, cut: Cut
) -> None:
    """In both modes, and for any chunking of the bytes."""
    conversation = Conversation(cut)
    expected = Model()
    if inline:
        conversation.run(conversation.client.hello())
    for number, request in enumerate(requests):
        outcome = conversation.run(begin(conversation.client, request, number))
        match request:
            case SaveEndp():
                expected.save(request, number)
                assert outcome is Status.OK
            case SaveDest():
                expected.bind(request)
                assert outcome is Status.OK
            case FindEndp() | FindDest():
                found = expected.find(request)
                assert outcome == (Status.FAIL if found is None else (tuple(found[0]), found[1]))
    assert conversation.client.inline is inline
    assert conversation.server.between_exchanges
    assert not conversation.client.descriptors
    assert conversation.server.close() == []


@given(st.lists(st.integers(0, 2**63 - 1)), cuts)
def test_purge_by_id_is_answered_in_order(ids: list[int], cut: Cut) -> None:
    """Every possible id arrives unchanged, for any chunking of the bytes."""
    conversation = Conversation(cut)
    conversation.run(conversation.client.hello())
    counts = conversation.run(conversation.client.purge_many(list(map(PurgeId, ids))))
    assert counts == [number % 2 for number in ids]
