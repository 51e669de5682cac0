"""Descriptors that clients pass to the daemon and back."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from scache.model import Status
from scache.protocol.messages import (
    ANNOUNCEMENT,
    FindEndp,
    encode_reply,
    encode_request,
)
from tests.support.daemon import Daemon
from tests.support.descriptors import descriptors_of
from tests.support.dialogue import (
    DEADLINE,
    MISS_ENDP,
)
from tests.support.save_ways import (
    SAVE_WAYS,
    SaveWay,
    ahead,
    byte_by_byte,
    glued,
    on_another_byte,
    on_its_byte,
    on_the_message_with_a_byte,
)
from tests.support.workbench import Workbench, expect_closed, leads_to

OK, BAD, FAIL = map(encode_reply, Status)


@pytest.mark.parametrize("count", [1, 2, 3, 253])
@pytest.mark.parametrize("way", SAVE_WAYS)
def test_save_takes_the_first_descriptor_and_closes_the_others(
    bench: Workbench, way: SaveWay, count: int
) -> None:
    """The way in which a client sends the descriptors does not matter."""
    client, endpoint = bench.client(), bench.label()
    taken, surplus = bench.pair(), bench.pair()
    way(client, endpoint, [taken[1].fileno(), *[surplus[1].fileno()] * (count - 1)])
    assert client.status() is Status.OK
    taken[1].close()
    surplus[1].close()
    expect_closed(surplus[0])
    assert leads_to(client.take_endp(endpoint), taken[0])


@pytest.mark.parametrize("way", [on_its_byte, glued, ahead, on_another_byte, byte_by_byte])
def test_save_without_a_descriptor_fails(bench: Workbench, way: SaveWay) -> None:
    """The reply is status 2, and the conversation goes on."""
    client, endpoint = bench.client(), bench.label()
    way(client, endpoint, [])
    assert client.status() is Status.FAIL
    assert client.take_endp(endpoint) is None
    peer = bench.park(client, endpoint)
    assert leads_to(client.take_endp(endpoint), peer)


def test_descriptor_after_a_refused_save_is_closed(bench: Workbench) -> None:
    """A descriptor that comes after its save was refused does not serve the next save."""
    client, endpoint = bench.client(), bench.label()
    on_its_byte(client, endpoint, [])
    assert client.status() is Status.FAIL
    late = bench.pair()
    client.send(encode_request(FindEndp(endpoint)), [late[1].fileno()])
    late[1].close()
    client.expect(MISS_ENDP)
    expect_closed(late[0])
    on_its_byte(client, endpoint, [])
    assert client.status() is Status.FAIL


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_surplus_descriptor_is_closed_while_its_client_stays(bench: Workbench, count: int) -> None:
    """A descriptor that comes with other requests belongs to none of them."""
    client, endpoint = bench.client(), bench.label()
    surplus = bench.pair()
    client.send(encode_request(FindEndp(endpoint)) * count, [surplus[1].fileno()])
    surplus[1].close()
    client.expect(MISS_ENDP * count)
    expect_closed(surplus[0])


def test_save_fails_at_the_descriptor_limit(path: Path) -> None:
    """At its descriptor limit the daemon replies status 2; it accepts the next client later."""
    with Daemon(path) as daemon, closing(Workbench(daemon)) as bench:
        client = bench.client()
        peer = bench.park(client, b"endpoint")
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        highest = max(descriptors_of(daemon.pid))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
        refused = bench.pair()
        for _ in range(highest + 1):
            if client.park(b"surplus", refused[1].fileno()) is not Status.OK:
                break
        else:
            pytest.fail("no save was refused")
        assert client.take_dest(b"destination") is None
        held = len(descriptors_of(daemon.pid))
        for way in (on_its_byte, on_the_message_with_a_byte, glued, ahead, byte_by_byte):
            way(client, b"surplus", [refused[1].fileno()] * 3)
            assert client.status() is Status.FAIL
        assert len(descriptors_of(daemon.pid)) == held
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.settimeout(DEADLINE)
            waiting.connect(str(daemon.path))
            assert leads_to(client.take_endp(b"endpoint"), peer)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert waiting.recv(len(ANNOUNCEMENT)) == ANNOUNCEMENT
        peer = bench.park(client, b"endpoint")
        assert leads_to(client.take_endp(b"endpoint"), peer)
        daemon.wait_for_log("out of descriptors")


def test_daemon_descriptors_are_close_on_exec(bench: Workbench) -> None:
    """All descriptors of the daemon but the three standard ones are close-on-exec."""
    client = bench.client()
    bench.park(client, bench.label())
    on_its_byte(client, bench.label(), [bench.pair()[1].fileno()] * 2)
    assert client.status() is Status.OK
    assert client.take_endp(b"nothing") is None
    for number, what in descriptors_of(bench.daemon.pid).items():
        if number > 2:
            try:
                info = Path(f"/proc/{bench.daemon.pid}/fdinfo/{number}").read_text()
            except FileNotFoundError:  # the daemon has closed it meanwhile
                continue
            flags = int(info.split("flags:")[1].split()[0], 8)
            assert flags & os.O_CLOEXEC, what


@pytest.mark.parametrize("blocking", [True, False])
def test_blocking_mode_of_a_descriptor_is_unchanged(bench: Workbench, blocking: bool) -> None:
    """A cached connection stays blocking or non-blocking, as its client left it."""
    client, endpoint = bench.client(), bench.label()
    _, theirs = bench.pair()
    theirs.setblocking(blocking)
    assert client.park(endpoint, theirs.fileno()) is Status.OK
    assert os.get_blocking(theirs.fileno()) is blocking
    hit = client.take_endp(endpoint)
    assert hit is not None
    assert os.get_blocking(bench.own(hit.descriptor)) is blocking


def tcp_connection() -> tuple[int, int]:
    """Return the ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        end = socket.create_connection(server.getsockname())
        return end.detach(), server.accept()[0].detach()


def unix_pair() -> tuple[int, int]:
    """Return the ends of a UNIX connection."""
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def udp_pair() -> tuple[int, int]:
    """Return the ends of a UNIX datagram connection."""
    one, other = socket.socketpair(type=socket.SOCK_DGRAM)
    return one.detach(), other.detach()


def file_twice() -> tuple[int, int]:
    """Return two descriptors of one file."""
    descriptor = os.memfd_create("parked")
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY), descriptor


@pytest.mark.parametrize("kind", [tcp_connection, unix_pair, udp_pair, os.pipe, file_twice])
def test_descriptors_of_any_kind_are_cached(
    bench: Workbench, kind: Callable[[], tuple[int, int]]
) -> None:
    """Sockets of all families, pipes and files are cached and found unchanged."""
    client, endpoint = bench.client(), bench.label()
    ours, theirs = kind()
    bench.own(ours)
    before = os.fstat(theirs)
    assert client.park(endpoint, theirs) is Status.OK
    os.close(theirs)
    hit = client.take_endp(endpoint)
    assert hit is not None
    bench.own(hit.descriptor)
    after = os.fstat(hit.descriptor)
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
    os.write(hit.descriptor, b"still there")
    assert os.read(ours, 100) == b"still there"
