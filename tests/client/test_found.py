"""`Found` owns its descriptor, and what cannot be saved is refused."""

from __future__ import annotations

import copy
import http.client
import os
import pickle
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from scache import Client, Found, NotParkable
from scache.client.exchanges import HasFileno
from tests.support.daemon import Daemon


@pytest.fixture
def descriptor() -> Iterator[int]:
    """Return an open descriptor; the test is to close it."""
    number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    yield number
    with pytest.raises(OSError):  # noqa: PT011 - EBADF
        os.fstat(number)


def test_found_closes_itself_with_a_warning(descriptor: int) -> None:
    """A dropped one leaves no descriptor behind."""
    found = [Found(descriptor, b"p")]
    with pytest.warns(ResourceWarning, match="unclosed Found"):
        found.clear()


def test_found_is_a_context_manager(descriptor: int) -> None:
    """At the end of the block it is closed; closing it again does nothing."""
    with Found(descriptor, b"p") as found:
        assert found.descriptor == descriptor
    assert found.descriptor == -1
    found.close()


def test_found_detach_gives_the_descriptor_away(descriptor: int) -> None:
    """Nothing that the object does afterwards closes it."""
    with Found(descriptor, b"p") as found:
        assert found.detach() == descriptor
    found.close()
    del found
    os.fstat(descriptor)
    os.close(descriptor)


def test_found_socket_gives_the_descriptor_away() -> None:
    """The socket object owns it, also when the found one is closed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = Found(os.dup(theirs.fileno()), b"p")
        with found.socket() as connection:
            found.close()
            connection.sendall(b"x")
            assert ours.recv(1) == b"x"


@pytest.mark.parametrize("method", ["detach", "socket"])
def test_found_without_its_descriptor_raises_value_error(descriptor: int, method: str) -> None:
    """Whatever has become of the number since is not touched."""
    found = Found(descriptor, b"p")
    found.close()
    with pytest.raises(ValueError, match="closed or passed to the caller"):
        getattr(found, method)()


def test_found_keeps_what_is_no_socket(descriptor: int) -> None:
    """The error of `socket` leaves the descriptor with the object."""
    with Found(descriptor, b"p") as found:
        with pytest.raises(OSError):  # noqa: PT011 - ENOTSOCK
            found.socket()
        assert found.descriptor == descriptor


def test_found_is_equal_to_its_like(descriptor: int) -> None:
    """By descriptor and properties."""
    found, other = Found(descriptor, b"p"), Found(descriptor, b"p", b"")
    assert found == other
    assert hash(found) == hash(other)
    assert found != Found(-1, b"p")
    other.detach()
    found.close()


def test_found_leaves_the_next_file_of_its_number_open() -> None:
    """Of a program that has read the number and closed it by os.close, as programs once did."""
    found = Found(os.open(os.devnull, os.O_RDONLY), b"p")
    number = found.descriptor
    os.close(number)
    with socket.socket() as other:
        assert other.fileno() == number
        found.close()
        del found
        os.fstat(number)


def test_found_whose_number_is_closed_is_dropped_without_a_warning() -> None:
    """There is nothing left to be told of."""
    found = Found(os.open(os.devnull, os.O_RDONLY), b"p")
    os.close(found.descriptor)
    del found


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_found_cannot_be_pickled_or_copied(
    descriptor: int, attempt: Callable[[Found], object]
) -> None:
    """The error says why."""
    with Found(descriptor, b"p") as found, pytest.raises(TypeError, match="has one owner"):
        attempt(found)


class Wrapper:
    """An object of a user's own around a socket."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._inner.fileno()  # type: ignore[attr-defined, no-any-return]


class Slotted(Wrapper):
    """The same without a __dict__ of its own."""

    __slots__ = ("_inner",)


@pytest.fixture
def tls() -> Iterator[ssl.SSLSocket]:
    """Make a TLS socket that has not shaken hands yet."""
    ours, theirs = socket.socketpair()
    context = ssl.create_default_context()
    with ours, context.wrap_socket(theirs, server_hostname="x", do_handshake_on_connect=False) as s:
        yield s


@pytest.mark.parametrize("wrap", [lambda s: s, Wrapper, Slotted, lambda s: Wrapper(Wrapper(s))])
@pytest.mark.parametrize("many", [True, False])
def test_tls_socket_is_refused(tls: ssl.SSLSocket, wrap: type[Wrapper], *, many: bool) -> None:
    """Before anything is sent, and by an error that says why."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Client("/nowhere") as client:
        items: list[tuple[int, str, str, HasFileno]] = [
            (60, "e", "", theirs),
            (60, "tls", "", wrap(tls)),
        ]
        save = partial(client.save_many, items) if many else partial(client.save_endp, *items[1])
        with pytest.raises(NotParkable, match="its keys are in the process"):
            save()


def test_tls_socket_in_wrappers_of_the_library_is_refused(path: Path, tls: ssl.SSLSocket) -> None:
    """A file of it, and the response of an HTTPS connection."""
    with tls.makefile("rb") as file, Client(path) as client:
        for each in (file, http.client.HTTPResponse(tls)):
            with each, pytest.raises(NotParkable):
                client.save_endp(60, "tls", "", each)
            assert issubclass(NotParkable, TypeError)


def test_plain_socket_beside_a_tls_socket_is_taken(path: Path, tls: ssl.SSLSocket) -> None:
    """Only the socket whose descriptor is saved counts."""
    ours, theirs = socket.socketpair()
    with Daemon(path), Client(path) as client, ours, theirs:
        wrapper = Wrapper(theirs)
        wrapper.other = tls  # type: ignore[attr-defined]
        assert client.save_endp(60, "plain", "", wrapper)
        found = client.find_endp("plain")
        assert found is not None
        found.close()


class Pooled(Wrapper):
    """A plain connection that knows its pool, and has a property that must not be read."""

    def __init__(self, inner: object, pool: object) -> None:
        super().__init__(inner)
        self.pool = pool

    @property
    def socket(self) -> object:
        """Connect, as lazy properties do."""
        raise AssertionError("this has side effects")


def test_plain_socket_of_a_pool_with_tls_engines_is_taken(path: Path) -> None:
    """An engine that is somewhere else says nothing of this socket; no property is read."""
    context = ssl.create_default_context()
    engine = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x")
    ours, theirs = socket.socketpair()
    with Daemon(path), Client(path) as client, ours, theirs:
        assert client.save_endp(60, "plain", "", Pooled(theirs, [engine, Wrapper(engine)]))
        found = client.find_endp("plain")
        assert found is not None
        found.close()
