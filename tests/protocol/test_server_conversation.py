"""The server's side of the conversation, without a socket."""

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
from scache.protocol.server import ServerConversation
from scache.protocol.server_events import Abandoned, Deliver, Delivered, Event, Save
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
    """The data that a client sends, and the expected events, replies and surplus descriptors."""

    chunks: list[Chunk]
    events: list[Event]
    sent: bytes
    surplus: Sequence[int] = ()


def check_every_way(case: Case) -> None:
    """Check a case with its own chunks, byte by byte, and together with the next message."""
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
    """Return the types of events. As tuples, two events of different types may be equal."""
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
def test_server_announces_the_protocol_first_unless_disabled(announce: bool) -> None:
    """The announcement is its first message."""
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
def test_request_arrives_unchanged(request_: Request) -> None:
    """Values may have any byte but NUL, may be empty, and may be names of attributes."""
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
def test_save_takes_the_first_descriptor(
    chunks: list[Chunk], descriptor: int | None, surplus: list[int]
) -> None:
    """It must come before or with the byte of the save. Further descriptors are surplus."""
    reply = OK if descriptor is not None else FAIL
    check_every_way(Case(chunks, [Save(SAVE, descriptor)], DUMMY + reply, surplus))


def events_of(machine: ServerConversation, data: bytes, *, lost: bool = False) -> list[Event]:
    """Pass data to a conversation; return the events."""
    machine.receive(data, lost=lost)
    found = []
    while not isinstance(event := machine.next_event(), NeedData):
        found.append(event)
    return found


def test_lost_descriptor_differs_from_one_that_was_not_sent() -> None:
    """The loss counts for the data that the descriptor came with."""
    base = ServerConversation()
    assert events_of(base, SAVING, lost=True) == [Save(SAVE, None, lost=True)]
    assert events_of(base, SAVING) == []
    assert events_of(base, b"\0", lost=True) == [Save(SAVE, None, lost=True)]
    assert events_of(base, SAVING + b"\0") == [Save(SAVE, None)]
    inline = ServerConversation()
    assert events_of(inline, encode([(b"request", b"hello")]), lost=True) == []
    assert events_of(inline, SAVING * 2, lost=True) == [Save(SAVE, None, lost=True)] * 2
    assert events_of(inline, SAVING[:9]) == []
    assert events_of(inline, SAVING[9:]) == [Save(SAVE, None)]
    assert events_of(inline, SAVING[:9], lost=True) == []
    assert events_of(inline, SAVING[9:]) == [Save(SAVE, None, lost=True)]


def test_late_descriptor_is_surplus() -> None:
    """It comes after its save was refused, and belongs to no other request."""
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
def test_descriptor_with_another_message_is_surplus(message: bytes) -> None:
    """It becomes surplus when the exchange of that message ends."""
    serving = Serving()
    serving.feed([(message, (7, 8))])
    serving.feed([(DUMMY, ())] if message == FINDING else [])
    assert serving.surplus == ([] if message == FINDING else [7, 8])
    serving.feed([(DUMMY, ())] if message == FINDING else [])
    assert serving.surplus == [7, 8]


def test_hit_is_delivered_when_the_last_dummy_arrives() -> None:
    """The exchange: reply, dummy, descriptor, dummy."""
    case = Case([(FINDING, ()), (DUMMY, ()), (DUMMY, ())], [FIND, Deliver(), Delivered()], HIT)
    check_every_way(case)
    check_every_way(case._replace(chunks=[(FINDING + DUMMY + DUMMY, ())]))


def test_hit_of_find_dest_has_two_properties() -> None:
    """The properties of the binding precede those of the endpoint."""
    found = FindDest(b"hit")
    check_every_way(
        Case(
            [(encode_request(found) + DUMMY + DUMMY, ())],
            [found, Deliver(), Delivered()],
            encode_reply(Status.OK, b"destination", b"hit"),
        )
    )


def test_request_in_place_of_the_last_dummy_is_served() -> None:
    """It ends the exchange of the hit, because the descriptor was sent."""
    events: list[Event] = [FIND, Deliver(), Delivered(), TAIL]
    sent = HIT + TAIL_REPLY
    check_every_way(Case([(FINDING, ()), (DUMMY + encode_request(TAIL), ())], events, sent))


def test_other_message_in_place_of_the_first_dummy_abandons_the_hit() -> None:
    """The descriptor was not sent yet."""
    nonsense = encode([(b"name", b"value")])
    check_every_way(Case([(FINDING, ()), (nonsense, ())], [FIND, Abandoned()], HIT))


@pytest.mark.parametrize(
    ("size", "came"), [(MAX_MESSAGE_SIZE, True), (MAX_MESSAGE_SIZE + 1, False)]
)
def test_dummy_may_have_further_attributes_up_to_64_kib(size: int, came: bool) -> None:
    """A longer one abandons the hit. The message comes whole or in pieces."""
    head, tail = b"dummy\0\0name\0", b"\0\0"
    dummy = head + b"x" * (size - len(head) - len(tail)) + tail
    for sizes in ([], [1000] * (size // 1000)):
        serving = Serving()
        serving.feed([(FINDING, ())])
        serving.feed(in_sizes(dummy, sizes))
        assert kinds(serving.events) == [FindEndp, Deliver if came else Abandoned]


def test_request_ahead_that_is_too_long_is_malformed() -> None:
    """It is answered in order, and its rest is not taken for a dummy."""
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
def test_bytes_beyond_the_size_limit_are_ignored(rest: bytes) -> None:
    """Only the bytes within the limit decide if a message that is too long is a request."""
    message = b"name\0" + b"x" * MAX_MESSAGE_SIZE + b"\0name\0" + rest + b"\0\0"
    for cut in (len(message), 70000, MAX_MESSAGE_SIZE + 1, len(message) - 1):
        serving = Serving()
        serving.feed(in_sizes(message, [cut]))
        assert serving.events == []


def test_requests_ahead_of_a_dummy_are_answered_in_order() -> None:
    """They are kept while the hit waits for its dummies."""
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
def test_malformed_request_gets_status_1(message: bytes, name: bytes, reply: bytes) -> None:
    """There is one reply. That to a find has empty properties."""
    check_every_way(Case([(message, ())], [Malformed(name)], reply))


@pytest.mark.parametrize("ttl", [b" 7", b"+7", b"007"])
def test_ttl_may_have_any_spelling_that_c_reads(ttl: bytes) -> None:
    """Blanks, a sign and zeros may precede the digits."""
    request = [(b"request", b"save_dest"), (b"ttl", ttl)]
    rest = [(b"label", b"d"), (b"property", b"p"), (b"label", b"e")]
    check_every_way(Case([(encode([*request, *rest]), ())], [SaveDest(7, b"d", b"p", b"e")], OK))


@pytest.mark.parametrize("message", [b"\0", b"\0\0\0", encode([(b"name", b"value")]), DUMMY])
def test_message_that_is_not_a_request_gets_no_reply(message: bytes) -> None:
    """The server ignores it."""
    check_every_way(Case([(message, ())], [], b""))


def test_request_above_64_kib_is_malformed() -> None:
    """A request of 64 KiB is served, and so is the request after the malformed one."""
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
def test_between_exchanges_is_false_within_an_exchange(message: bytes, idle: bool) -> None:
    """An exchange lasts from the first byte of its request to the last byte that it needs."""
    serving = Serving()
    serving.feed([(message, ())])
    assert serving.machine.between_exchanges is idle


def test_next_event_returns_need_data_without_data() -> None:
    """The constant has a readable repr."""
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
    """The replies are the same bytes, too."""
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
    """Only ProtocolError is raised, and each descriptor comes out exactly once."""
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
def test_memory_is_bounded_for_endless_input(beginning: bytes, piece: bytes) -> None:
    """The conversation keeps at most ten times the size of the largest message."""
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
