"""The server's half of the conversation, without a socket."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scache.errors import ProtocolError
from scache.model import Status
from scache.protocol.codec import MAX_MESSAGE_SIZE, NEED_DATA, NeedData, encode
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    FindDest,
    FindEndp,
    Hello,
    PurgeId,
    Request,
    SaveDest,
    SaveEndp,
    encode_reply,
    encode_request,
)
from scache.protocol.request_parser import Malformed
from scache.protocol.server import (
    Abandoned,
    Deliver,
    Delivered,
    Event,
    Save,
    ServerConversation,
)
from tests.support.machines import Chunk, Serving, byte_by_byte, in_sizes, values

OK, BAD, FAIL = map(encode_reply, Status)
BAD_FIND_ENDP = encode_reply(Status.BAD, b"")
BAD_FIND_DEST = encode_reply(Status.BAD, b"", b"")
HIT = encode_reply(Status.OK, b"hit")

SAVE = SaveEndp(10, b"endpoint", b"properties")
SAVING = encode_request(SAVE)
BINDING = encode_request(SaveDest(10, b"destination", b"properties", b"endpoint"))
FIND = FindEndp(b"hit")
FINDING = encode_request(FIND)

TAIL = FindEndp(b"tail")
TAIL_REPLY = encode_reply(Status.FAIL, b"")


class Case(NamedTuple):
    """What a client sends, and what is to come of it."""

    chunks: list[Chunk]
    events: list[Event]
    sent: bytes
    surplus: Sequence[int] = ()


def check_every_way(case: Case) -> None:
    """Check a case as it was sent, a byte at a time, and with the next message glued to it."""
    *chunks, (last, descriptors) = case.chunks
    with_tail = [*chunks, (last + encode_request(TAIL), descriptors)]
    _check(case.chunks, case)
    _check(list(byte_by_byte(case.chunks)), case)
    longer = case._replace(
        events=[*case.events, TAIL],
        sent=case.sent + TAIL_REPLY,
    )
    _check(with_tail, longer)
    _check(list(byte_by_byte(with_tail)), longer)


def kinds(events: Sequence[Event]) -> list[type[Event]]:
    """Return what they are: as tuples, two of different kinds may be equal."""
    return list(map(type, events))


def _check(chunks: list[Chunk], case: Case) -> None:
    serving = Serving()
    serving.feed(chunks)
    assert serving.events == case.events
    assert kinds(serving.events) == kinds(case.events)
    assert serving.sent == case.sent
    assert serving.surplus == list(case.surplus)
    assert serving.machine.between_exchanges
    assert serving.machine.close() == []


@pytest.mark.parametrize("announce", [True, False])
def test_announcement(announce: bool) -> None:
    """The server speaks first, unless it is told not to."""
    assert Serving(announce=announce).sent == (ANNOUNCEMENT if announce else b"")


@pytest.mark.parametrize(
    "request_",
    [
        SaveEndp(1, b"", b""),
        SaveEndp(2**31 - 1, b"request", b"save_endp"),
        SaveDest(300, b"line\nline", b"\xff\xfe", b"dummy"),
        SaveDest(300, b"", b"", b""),
        FindEndp(b""),
        FindDest(b"\x01 \x7f\x80"),
    ],
)
def test_requests(request_: Request) -> None:
    """Each request arrives as it was sent: any bytes but NUL, empty strings, names as values."""
    message = encode_request(request_)
    match request_:
        case SaveEndp():
            chunks: list[Chunk] = [(message, ()), (DESCRIPTOR_BYTE, (7,))]
            check_every_way(Case(chunks, [Save(request_, 7)], DUMMY + OK))
        case SaveDest():
            check_every_way(Case([(message, ())], [request_], OK))
        case FindEndp():
            reply = encode_reply(Status.FAIL, b"")
            check_every_way(Case([(message, ())], [request_], reply))
        case FindDest():
            reply = encode_reply(Status.FAIL, b"", b"")
            check_every_way(Case([(message, ())], [request_], reply))


@pytest.mark.parametrize(
    ("chunks", "descriptor", "surplus"),
    [
        pytest.param([(SAVING, ()), (b"\0", (7,))], 7, [], id="on its byte"),
        pytest.param([(SAVING + b"\0", (7,))], 7, [], id="glued"),
        pytest.param([(SAVING, (7,))], 7, [], id="early"),
        pytest.param([(SAVING, (7,)), (b"\0", ())], 7, [], id="early, and its byte"),
        pytest.param([(SAVING, ()), (b"x", (7,))], 7, [], id="on another byte than NUL"),
        pytest.param([(SAVING, ()), (b"\0", ())], None, [], id="missing"),
        pytest.param([(SAVING, ()), (b"\0", (7, 8, 9))], 7, [8, 9], id="tripled"),
        pytest.param([(SAVING, (7, 8))], 7, [8], id="early and doubled"),
        pytest.param([(SAVING, (7,)), (b"\0", (8,))], 7, [8], id="early and again"),
    ],
)
def test_descriptor_of_a_save(
    chunks: list[Chunk], descriptor: int | None, surplus: list[int]
) -> None:
    """A save takes the first descriptor that comes up to its byte, and the others are surplus."""
    reply = OK if descriptor is not None else FAIL
    check_every_way(Case(chunks, [Save(SAVE, descriptor)], DUMMY + reply, surplus))


def saves(machine: ServerConversation, data: bytes, *, lost: bool = False) -> list[Event]:
    """Let a machine receive something; return what it makes of it."""
    machine.receive(data, lost=lost)
    found = []
    while not isinstance(event := machine.next_event(), NeedData):
        found.append(event)
    return found


def test_descriptor_that_could_not_be_received() -> None:
    """It is told from one that was not sent, until what it came with is over."""
    base = ServerConversation()
    assert saves(base, SAVING, lost=True) == [Save(SAVE, None, lost=True)]
    assert saves(base, SAVING) == []
    assert saves(base, b"\0", lost=True) == [Save(SAVE, None, lost=True)]
    assert saves(base, SAVING + b"\0") == [Save(SAVE, None)]
    inline = ServerConversation()
    assert saves(inline, encode([(b"request", b"hello")]), lost=True) == []
    assert saves(inline, SAVING * 2, lost=True) == [Save(SAVE, None, lost=True)] * 2
    assert saves(inline, SAVING[:9]) == []
    assert saves(inline, SAVING[9:]) == [Save(SAVE, None)]
    assert saves(inline, SAVING[:9], lost=True) == []
    assert saves(inline, SAVING[9:]) == [Save(SAVE, None, lost=True)]


def test_late_descriptor() -> None:
    """A descriptor that comes after its save was refused is surplus, and no other request's."""
    late: list[Chunk] = [(SAVING, ()), (b"\0", ()), (encode_request(TAIL), (7,))]
    check_every_way(Case(late, [Save(SAVE, None), TAIL], DUMMY + FAIL + TAIL_REPLY, [7]))


@pytest.mark.parametrize(
    "message",
    [
        FINDING,
        BINDING,
        encode([(b"request", b"nonsense")]),
        encode([(b"request", b"save_endp"), (b"ttl", b"0")]),
        encode([(b"name", b"value")]),
    ],
    ids=["find", "save_dest", "unknown", "malformed", "no request"],
)
def test_descriptor_with_another_message(message: bytes) -> None:
    """A descriptor that comes with anything but a save is surplus once that is dealt with."""
    serving = Serving()
    serving.feed([(message, (7, 8))])
    serving.feed([(DUMMY, ())] if message == FINDING else [])
    assert serving.surplus == ([] if message == FINDING else [7, 8])
    serving.feed([(DUMMY, ())] if message == FINDING else [])
    assert serving.surplus == [7, 8]


def test_find_that_hits() -> None:
    """The reply, a dummy, the descriptor, a dummy: the server parts with its copy at the end."""
    case = Case([(FINDING, ()), (DUMMY, ()), (DUMMY, ())], [FIND, Deliver(), Delivered()], HIT)
    check_every_way(case)
    check_every_way(case._replace(chunks=[(FINDING + DUMMY + DUMMY, ())]))


def test_find_dest_that_hits() -> None:
    """The reply has the properties of the binding before those of the endpoint."""
    found = FindDest(b"hit")
    check_every_way(
        Case(
            [(encode_request(found) + DUMMY + DUMMY, ())],
            [found, Deliver(), Delivered()],
            encode_reply(Status.OK, b"destination", b"hit"),
        )
    )


def test_request_in_place_of_the_last_dummy() -> None:
    """A request that comes when the descriptor was sent ends that exchange and is served."""
    events: list[Event] = [FIND, Deliver(), Delivered(), TAIL]
    sent = HIT + TAIL_REPLY
    check_every_way(Case([(FINDING, ()), (DUMMY + encode_request(TAIL), ())], events, sent))


def test_something_else_than_a_dummy() -> None:
    """A client that sends nonsense for a dummy has abandoned its hit."""
    nonsense = encode([(b"name", b"value")])
    check_every_way(Case([(FINDING, ()), (nonsense, ())], [FIND, Abandoned()], HIT))


@pytest.mark.parametrize(
    ("size", "came"), [(MAX_MESSAGE_SIZE, True), (MAX_MESSAGE_SIZE + 1, False)]
)
def test_dummy_that_is_too_long(size: int, came: bool) -> None:
    """A dummy with more to it is one up to 64 KiB, whole or in pieces; above, the hit goes back."""
    head, tail = b"dummy\0\0name\0", b"\0\0"
    dummy = head + b"x" * (size - len(head) - len(tail)) + tail
    for sizes in ([], [1000] * (size // 1000)):
        serving = Serving()
        serving.feed([(FINDING, ())])
        serving.feed(in_sizes(dummy, sizes))
        assert kinds(serving.events) == [FindEndp, Deliver if came else Abandoned]


def test_request_ahead_that_is_too_long() -> None:
    """It is answered in its turn, and its rest is taken for no dummy, whatever it looks like."""
    for tail in (b"\0\0", b"\0" + DUMMY, b"\0dummy\0" + b"x" * MAX_MESSAGE_SIZE + b"\0\0"):
        request = b"request\0find_endp\0label\0" + b"x" * MAX_MESSAGE_SIZE + tail
        for cut in (len(request), len(request) - len(tail) + 1, len(request) - 1, 70000):
            serving = Serving()
            serving.feed(in_sizes(FINDING + request + DUMMY, [len(FINDING), cut]))
            assert serving.events == [FIND, Deliver()]
            serving.feed([(DUMMY, ())])
            assert serving.events[2:] == [Delivered(), Malformed(b"find_endp", too_long=True)]
            assert kinds(serving.events) == [FindEndp, Deliver, Delivered, Malformed]


@pytest.mark.parametrize("rest", [b"request", b"request\0x", b"y"])
def test_what_is_beyond_the_limit_does_not_count(rest: bytes) -> None:
    """Of a message that is too long only what is within the limit says whether it is a request."""
    message = b"name\0" + b"x" * MAX_MESSAGE_SIZE + b"\0name\0" + rest + b"\0\0"
    for cut in (len(message), 70000, MAX_MESSAGE_SIZE + 1, len(message) - 1):
        serving = Serving()
        serving.feed(in_sizes(message, [cut]))
        assert serving.events == []


def test_pipelined_hits() -> None:
    """Requests sent ahead while a hit waits for its dummies are kept and answered in order."""
    other = FindEndp(b"hit 2")
    case = Case(
        [(FINDING + encode_request(other) + BINDING + SAVING, (7,)), (4 * DUMMY, ())],
        [
            FIND,
            *(Deliver(), Delivered()),
            other,
            *(Deliver(), Delivered()),
            SaveDest(10, b"destination", b"properties", b"endpoint"),
            Save(SAVE, 7),
        ],
        HIT + encode_reply(Status.OK, b"hit 2") + OK + DUMMY + OK,
    )
    check_every_way(case)


@pytest.mark.parametrize(
    ("message", "name", "reply"),
    [
        *(
            pytest.param(
                encode([(b"request", b"save_endp"), (b"ttl", ttl), *rest]), b"save_endp", BAD, id=""
            )
            for ttl in (b"0", b"-5", b"abc", b"", b"7x", b"4294967296")
            for rest in [[(b"label", b"e"), (b"property", b"p")]]
        ),
        *(
            pytest.param(
                encode([(b"request", b"save_dest"), (b"ttl", ttl), *rest]), b"save_dest", BAD, id=""
            )
            for ttl in (b"0", b"-5", b"abc", b"")
            for rest in [[(b"label", b"d"), (b"property", b"p"), (b"label", b"e")]]
        ),
        (encode([(b"request", b"save_endp")]), b"save_endp", BAD),
        (encode([(b"request", b"save_endp"), (b"label", b"e")]), b"save_endp", BAD),
        (encode([(b"request", b"save_endp"), (b"ttl", b"9")]), b"save_endp", BAD),
        (encode([(b"request", b"find_endp")]), b"find_endp", BAD_FIND_ENDP),
        (encode([(b"request", b"find_endp"), (b"name", b"e")]), b"find_endp", BAD_FIND_ENDP),
        (encode([(b"request", b"find_dest")]), b"find_dest", BAD_FIND_DEST),
        (encode([(b"request", b"find_dest"), (b"name", b"e")]), b"find_dest", BAD_FIND_DEST),
        (encode([(b"request", b"nonsense"), (b"label", b"e")]), b"nonsense", BAD),
        (encode([(b"request", b"")]), b"", BAD),
    ],
)
def test_malformed(message: bytes, name: bytes, reply: bytes) -> None:
    """A malformed request gets status 1 once, a find with its empty properties."""
    check_every_way(Case([(message, ())], [Malformed(name)], reply))


@pytest.mark.parametrize("ttl", [b" 7", b"+7", b"007"])
def test_ttl_spelled_otherwise(ttl: bytes) -> None:
    """A ttl that C reads as a number is one."""
    request = [(b"request", b"save_dest"), (b"ttl", ttl)]
    rest = [(b"label", b"d"), (b"property", b"p"), (b"label", b"e")]
    check_every_way(Case([(encode([*request, *rest]), ())], [SaveDest(7, b"d", b"p", b"e")], OK))


@pytest.mark.parametrize("message", [b"\0", b"\0\0\0", encode([(b"name", b"value")]), DUMMY])
def test_no_request(message: bytes) -> None:
    """What is no request gets no reply."""
    check_every_way(Case([(message, ())], [], b""))


def test_largest_message() -> None:
    """A message of 64 KiB is served, one of a byte more is malformed, and the next is served."""
    room = MAX_MESSAGE_SIZE - len(encode_request(FindEndp(b"")))
    largest = FindEndp(b"x" * room)
    for size in (4096, MAX_MESSAGE_SIZE, 2 * MAX_MESSAGE_SIZE):
        serving = Serving()
        stream = encode_request(largest) + encode_request(FindEndp(b"x" * (room + 1)))
        stream += encode_request(TAIL)
        serving.feed(in_sizes(stream, [size] * (len(stream) // size)))
        assert serving.events == [largest, Malformed(b"find_endp", too_long=True), TAIL]
        assert serving.sent == TAIL_REPLY + BAD_FIND_ENDP + TAIL_REPLY


@pytest.mark.parametrize(
    ("message", "idle"),
    [
        (b"", True),
        (b"r", False),
        (SAVING[:-1], False),
        (SAVING, False),
        (FINDING, False),
        (FINDING + DUMMY, False),
        (FINDING + DUMMY + DUMMY, True),
        (encode_request(TAIL), True),
        (encode_request(TAIL) + b"r", False),
        (b"label\0" + b"x" * MAX_MESSAGE_SIZE + b"\0", False),
        (b"label\0" + b"x" * MAX_MESSAGE_SIZE + b"\0\0", True),
    ],
)
def test_between_exchanges(message: bytes, idle: bool) -> None:
    """A client owes nothing before the first byte of a request and after its exchange's last."""
    serving = Serving()
    serving.feed([(message, ())])
    assert serving.machine.between_exchanges is idle


def test_need_data_is_neither_true_nor_false() -> None:
    """That more is needed has a name of its own."""
    assert ServerConversation().next_event() is NEED_DATA
    assert repr(NEED_DATA) == "NEED_DATA"


attribute_names = [b"request", b"ttl", b"id", b"label", b"property", b"dummy", b"status"]
request_names = [b"save_endp", b"find_endp", b"save_dest", b"find_dest", b"hello", b"purge_id"]
tokens = st.sampled_from([*attribute_names, *request_names, b"", b"", b"7", b"0", b"hit"]) | values
requests = st.one_of(
    st.builds(SaveDest, st.integers(-1, 400), values, values, values),
    st.builds(FindEndp, values),
    st.builds(FindDest, values),
    st.just(FIND),
    st.just(Hello(frozenset())),
    st.builds(PurgeId, st.integers(-1, 2**63)),
).map(encode_request)
streams = st.lists(
    st.one_of(
        requests,
        st.just(SAVING),
        st.sampled_from([DUMMY, b"\0", b"x"]),
        st.lists(tokens).map(lambda parts: b"".join(part + b"\0" for part in parts)),
        st.binary(max_size=5),
    )
)


@given(streams, st.lists(st.integers(1, 40)))
def test_any_chunking_gives_the_same_events(stream: list[bytes], sizes: list[int]) -> None:
    """However the stream is cut, the same events and the same bytes come of it."""
    whole, cut = Serving(), Serving()
    whole.feed([(b"".join(stream), ())])
    cut.feed(in_sizes(b"".join(stream), sizes))
    assert cut.events == whole.events
    assert kinds(cut.events) == kinds(whole.events)
    assert cut.sent == whole.sent
    assert cut.machine.between_exchanges == whole.machine.between_exchanges


@given(st.lists(st.tuples(streams.map(b"".join), st.integers(0, 4))), st.data())
def test_any_bytes_with_any_descriptors(
    received: list[tuple[bytes, int]], data: st.DataObject
) -> None:
    """Nothing but ProtocolError is raised, and each descriptor comes out exactly once."""
    serving, number, given_in = Serving(), 0, 0
    serving.find = lambda _: data.draw(st.sampled_from([None, (b"properties",)]))
    try:
        for piece, count in received:
            given_in += count * bool(piece)
            serving.feed([(piece, tuple(range(number, number + count)))] if piece else [])
            number = given_in
    except ProtocolError:
        pass
    saved = [event.descriptor for event in serving.events if isinstance(event, Save)]
    out = [descriptor for descriptor in saved if descriptor is not None]
    assert sorted(out + serving.surplus + serving.machine.close()) == list(range(given_in))
    assert serving.machine.close() == []


MEGABYTES = 8


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        pytest.param(b"", b"x" * 65536, id="a name without end"),
        pytest.param(b"", b"x\0" * 32768, id="attributes without end"),
        pytest.param(b"", b"\0" * 65536, id="empty messages"),
        pytest.param(b"request\0find_endp\0label\0", b"x" * 65536, id="a label without end"),
        pytest.param(b"request\0", b"x" * 65536, id="a request's name without end"),
        pytest.param(b"request\0save_endp\0ttl\0", b"9" * 65536, id="a ttl without end"),
        pytest.param(FINDING, b"x" * 65536, id="a dummy without end"),
        pytest.param(FINDING + b"dummy\0", b"x" * 65536, id="a dummy's value without end"),
        pytest.param(
            FINDING + b"request\0find_endp\0label\0",
            b"x" * 65536,
            id="a request ahead without end",
        ),
        pytest.param(
            FINDING + b"request\0find_endp\0",
            b"x\0" * 32768,
            id="attributes of a request ahead without end",
        ),
        pytest.param(FINDING, encode_request(FindEndp(b"")) * 2000, id="small requests ahead"),
        pytest.param(FINDING, encode_request(FindEndp(b"x" * 60000)), id="large requests ahead"),
    ],
)
def test_memory_is_bounded(beginning: bytes, piece: bytes) -> None:
    """Whatever a client sends without end, a small multiple of the largest message is kept."""
    serving = Serving()
    serving.feed([(beginning, ())])
    tracemalloc.start()
    try:
        for _ in range(MEGABYTES * 2**20 // len(piece)):
            serving.machine.receive(piece)
            while not isinstance(serving.machine.next_event(), NeedData):
                serving.machine.data_to_send()
    except ProtocolError:
        pass
    finally:
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 10 * MAX_MESSAGE_SIZE
