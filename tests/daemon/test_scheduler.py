"""The scheduler of heavy clients, on a clock that only the served clients move."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from scache.daemon.scheduler import HEAVY_SHARE, QUANTUM, Scheduler

LIGHT = 1
"""The descriptor of a light client; those of heavy ones are from 100 on."""

STEP = QUANTUM * 1.01
"""Seconds of a step that uses up a quantum."""


class Simulation:
    """Light and heavy clients in simulated time; heavy ones always have more to do."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.scheduler = Scheduler(lambda: self.now)
        self.used: Counter[int] = Counter()
        """Microseconds of service, by descriptor."""
        self.order: list[int] = []
        """Descriptors in the order of their steps."""

    def add_heavy(self, descriptor: int, step: float, *, second: bool = False) -> None:
        """Enqueue a client each step of which takes ``step`` seconds."""

        def serve() -> None:
            self._pass(descriptor, step)
            enqueue()

        enqueue = partial(self.scheduler.enqueue, descriptor, serve, second=second)
        enqueue()

    def serve_light(self, step: float, count: int = 1) -> None:
        """Serve ``count`` light clients, as after one poll."""
        for _ in range(count):
            self._pass(LIGHT, step)
            self.scheduler.served(LIGHT)

    def run(self, seconds: float, light_step: float = 0.0, light: int = 0) -> None:
        """Serve light clients and then heavy ones that are due, again and again."""
        end = self.now + seconds
        while self.now < end:
            self.serve_light(light_step, light)
            if self.scheduler.due:
                self.scheduler.run()
            elif not light:
                self.now += 1e-4

    def share(self, *descriptors: int) -> float:
        """Return the part of all service that these descriptors got."""
        return sum(self.used[each] for each in descriptors) / self.used.total()

    def _pass(self, descriptor: int, seconds: float) -> None:
        self.now += seconds
        self.used[descriptor] += round(seconds * 1e6)
        self.order.append(descriptor)


def test_scheduler_serves_one_quantum_at_a_time_without_light_clients() -> None:
    """`run` returns after each quantum, so that a light client does not wait longer."""
    simulation = Simulation()
    simulation.add_heavy(100, QUANTUM / 5)
    simulation.add_heavy(101, QUANTUM / 5)
    began = simulation.now
    simulation.scheduler.run()
    assert simulation.now - began == pytest.approx(QUANTUM, rel=0.25)
    assert set(simulation.order) == {100}


def test_scheduler_gives_heavy_clients_all_time_without_light_clients() -> None:
    """Heavy clients are then always due."""
    simulation = Simulation()
    simulation.add_heavy(100, QUANTUM)
    for _ in range(100):
        assert simulation.scheduler.due
        simulation.scheduler.run()


@pytest.mark.parametrize("heavy", [1, 64])
@pytest.mark.parametrize("light", [1, 16, 250, 1000])
def test_scheduler_limits_heavy_clients_to_their_share(heavy: int, light: int) -> None:
    """The share does not depend on the number of light and heavy clients."""
    simulation = Simulation()
    descriptors = range(100, 100 + heavy)
    for descriptor in descriptors:
        simulation.add_heavy(descriptor, 0.0004)
    simulation.run(2.0, 0.00004, light)
    assert simulation.share(*descriptors) == pytest.approx(HEAVY_SHARE, rel=0.25)


def test_scheduler_serves_most_light_requests_without_a_quantum_before_them() -> None:
    """A quantum follows few of the polls, so that it does not determine the median latency."""
    simulation = Simulation()
    simulation.add_heavy(100, QUANTUM)
    polls = preceded = 0
    while polls < 1000:
        before = simulation.used[100]
        simulation.run(1e-9, 0.0001, 1)
        polls += 1
        preceded += simulation.used[100] > before
    assert 0 < preceded < polls / 10


def test_scheduler_divides_time_not_steps_among_heavy_clients() -> None:
    """A client with long steps gets as much time as one with short steps (deficit round robin)."""
    simulation = Simulation()
    steps = {100: QUANTUM * 6, 101: QUANTUM, 102: QUANTUM / 8}
    for descriptor, step in steps.items():
        simulation.add_heavy(descriptor, step)
    simulation.run(5.0)
    for descriptor in steps:
        assert simulation.share(descriptor) == pytest.approx(1 / 3, rel=0.1)


def test_scheduler_serves_every_heavy_client_within_a_round() -> None:
    """No heavy client is skipped."""
    simulation = Simulation()
    for descriptor in range(100, 150):
        simulation.add_heavy(descriptor, STEP)
    simulation.run(STEP * 49.5)
    assert sorted(simulation.order) == list(range(100, 150))


def test_scheduler_gives_every_other_quantum_to_the_client_that_enqueues_second() -> None:
    """New connections do not wait for a round of all heavy clients."""
    simulation = Simulation()
    for descriptor in range(100, 150):
        simulation.add_heavy(descriptor, STEP)
    simulation.add_heavy(99, STEP, second=True)
    simulation.run(STEP * 100)
    assert simulation.share(99) == pytest.approx(0.5, abs=0.05)
    assert (99, 99) not in zip(simulation.order, simulation.order[1:], strict=False)


def test_scheduler_divides_time_not_steps_between_new_connections_and_others() -> None:
    """A long step of the client that enqueues second costs it some of its next quanta."""
    simulation = Simulation()
    for descriptor in range(100, 150):
        simulation.add_heavy(descriptor, STEP)
    simulation.add_heavy(99, STEP * 4, second=True)
    simulation.run(STEP * 400)
    assert simulation.share(99) == pytest.approx(0.5, abs=0.05)


def test_scheduler_does_not_count_a_heavy_client_as_light() -> None:
    """Clients that send much in small pieces do not delay each other."""
    simulation = Simulation()
    simulation.add_heavy(100, QUANTUM)
    for _ in range(100):
        simulation.now += 1e-5
        simulation.scheduler.served(100)
        assert simulation.scheduler.due
        simulation.scheduler.run()


def test_scheduler_forgets_light_clients_that_send_no_more_requests() -> None:
    """Heavy clients are due at once some milliseconds after the last light request."""
    simulation = Simulation()
    simulation.add_heavy(100, QUANTUM * 20)
    simulation.serve_light(0.0001)
    simulation.scheduler.run()
    simulation.serve_light(0.0001)
    assert not simulation.scheduler.due
    simulation.now += 0.03
    assert simulation.scheduler.due


def test_scheduler_lets_a_new_light_client_finish_an_exchange_first() -> None:
    """The next request of a light client meets no quantum, even if none was active for long."""
    simulation = Simulation()
    simulation.add_heavy(100, QUANTUM)
    simulation.run(1.0)
    simulation.serve_light(0.0001)
    assert not simulation.scheduler.due
    simulation.run(0.01, 0.0001, 1)
    assert simulation.used[100] > 1_000_000


def test_scheduler_drops_a_client_that_has_no_more_to_do() -> None:
    """A callback that does not enqueue again is called once."""
    simulation = Simulation()
    called: list[int] = []
    simulation.scheduler.enqueue(100, lambda: called.append(100))
    simulation.scheduler.enqueue(101, lambda: called.append(101))
    simulation.scheduler.run()
    simulation.scheduler.run()
    assert called == [100, 101]
    assert not simulation.scheduler.waiting
