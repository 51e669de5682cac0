"""Drivers for the sans-IO halves of the protocol, and for the state machines of Hypothesis.

Numbers take the place of descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from scache.model import Status
from scache.protocol.codec import NEED_DATA, NeedData
from scache.protocol.messages import FindDest, FindEndp, PurgeId, SaveDest
from scache.protocol.request_parser import Malformed
from scache.protocol.server import ServerConversation
from scache.protocol.server_events import Event, Save

Chunk = tuple[bytes, tuple[int, ...]]
"""Bytes, and the descriptors attached to the first of them."""


def run_machine(machine: type[RuleBasedStateMachine], examples: int) -> None:
    """Run this number of sequences of at most 50 operations each."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


values = st.binary(max_size=20).map(lambda value: value.replace(b"\0", b""))
"""Strings of the protocol: any bytes but NUL."""


def byte_by_byte(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Cut the chunks into single bytes."""
    for data, descriptors in chunks:
        yield data[:1], descriptors
        for at in range(1, len(data)):
            yield data[at : at + 1], ()


def in_sizes(stream: bytes, sizes: Iterable[int]) -> Iterator[Chunk]:
    """Cut a stream into pieces of these sizes; the rest is the last piece."""
    for size in sizes:
        yield stream[:size], ()
        stream = stream[size:]
    yield stream, ()


class Serving:
    """A server's conversation, and a fake cache that answers it.

    Labels that begin with ``hit`` are found. A save without a descriptor fails. Odd ids are cached.
    """

    def __init__(self, *, announce: bool = False) -> None:
        self.machine = ServerConversation(announce=announce)
        self.events: list[Event] = []
        self.sent = self.machine.data_to_send()
        self.surplus: list[int] = []
        self.find: Callable[[FindEndp | FindDest], Sequence[bytes] | None] = find_hits

    def feed(self, chunks: Iterable[Chunk]) -> None:
        """Pass received data to the conversation as a session does, and answer its events."""
        for data, descriptors in chunks:
            if data:
                self.machine.receive(data, descriptors)
                while self.machine.unread:
                    event = self.machine.next_event()
                    if not isinstance(event, NeedData):
                        self.events.append(event)
                        self._answer(event)
                assert self.machine.next_event() is NEED_DATA
                self.surplus += self.machine.surplus_descriptors()
                self.sent += self.machine.data_to_send()

    def _answer(self, event: Event) -> None:
        match event:
            case Save(_, descriptor):
                self.machine.reply_status(Status.FAIL if descriptor is None else Status.OK)
            case Malformed(_, descriptor) if descriptor is not None:
                self.surplus.append(descriptor)
            case SaveDest():
                self.machine.reply_status(Status.OK)
            case PurgeId(number):
                self.machine.reply_purged(number % 2)
            case FindEndp() | FindDest():
                properties = self.find(event)
                if properties is None:
                    self.machine.reply_miss(event)
                else:
                    self.machine.reply_hit(*properties)


def find_hits(request: FindEndp | FindDest) -> Sequence[bytes] | None:
    """Return the label as properties if it begins with ``hit``, else None."""
    (label,) = request
    if not label.startswith(b"hit"):
        return None
    return (b"destination", label) if isinstance(request, FindDest) else (label,)
