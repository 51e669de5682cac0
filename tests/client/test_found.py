"""`Found` and its descriptor, and connections that cannot be saved."""

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
from scache.client.arguments import HasFileno
from tests.support.daemon import Daemon


@pytest.fixture
def descriptor() -> Iterator[int]:
    """Return an open descriptor; check that the test has closed it."""
    number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    yield number
    with pytest.raises(OSError):  # noqa: PT011 - EBADF
        os.fstat(number)


def test_found_closes_itself_with_a_warning(descriptor: int) -> None:
    """Dropping the object closes its descriptor."""
    found = [Found(descriptor, b"p")]
    with pytest.warns(ResourceWarning, match="unclosed Found"):
        found.clear()


def test_found_is_a_context_manager(descriptor: int) -> None:
    """The end of the block closes the descriptor. Closing it again does nothing."""
    with Found(descriptor, b"p") as found:
        assert found.descriptor == descriptor
    assert found.descriptor == -1
    found.close()


def test_found_detach_passes_the_descriptor_to_the_caller(descriptor: int) -> None:
    """The object does not close it afterwards."""
    with Found(descriptor, b"p") as found:
        assert found.detach() == descriptor
    found.close()
    del found
    os.fstat(descriptor)
    os.close(descriptor)


def test_found_socket_passes_the_descriptor_to_the_socket_object() -> None:
    """Closing the found object afterwards leaves it open."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = Found(os.dup(theirs.fileno()), b"p")
        with found.socket() as connection:
            found.close()
            connection.sendall(b"x")
            assert ours.recv(1) == b"x"


@pytest.mark.parametrize("method", ["detach", "socket"])
def test_found_without_its_descriptor_raises_value_error(descriptor: int, method: str) -> None:
    """The number may belong to another file by now, which is left alone."""
    found = Found(descriptor, b"p")
    found.close()
    with pytest.raises(ValueError, match="closed or passed to the caller"):
        getattr(found, method)()


def test_found_keeps_a_descriptor_that_is_not_a_socket(descriptor: int) -> None:
    """`Found.socket` raises OSError, and the object still owns the descriptor."""
    with Found(descriptor, b"p") as found:
        with pytest.raises(OSError):  # noqa: PT011 - ENOTSOCK
            found.socket()
        assert found.descriptor == descriptor


def test_found_compares_by_descriptor_and_properties(descriptor: int) -> None:
    """Equal objects have the same hash."""
    found, other = Found(descriptor, b"p"), Found(descriptor, b"p", b"")
    assert found == other
    assert hash(found) == hash(other)
    assert found != Found(-1, b"p")
    other.detach()
    found.close()


def test_found_does_not_close_another_file_with_its_number() -> None:
    """The program has passed `descriptor` to os.close, as it had to do in earlier versions."""
    found = Found(os.open(os.devnull, os.O_RDONLY), b"p")
    number = found.descriptor
    os.close(number)
    with socket.socket() as other:
        assert other.fileno() == number
        found.close()
        del found
        os.fstat(number)


def test_found_whose_number_is_closed_is_dropped_without_a_warning() -> None:
    """No open descriptor is dropped."""
    found = Found(os.open(os.devnull, os.O_RDONLY), b"p")
    os.close(found.descriptor)
    del found


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_found_cannot_be_pickled_or_copied(
    descriptor: int, attempt: Callable[[Found], object]
) -> None:
    """The error names the reason."""
    with Found(descriptor, b"p") as found, pytest.raises(TypeError, match="has one owner"):
        attempt(found)


class Wrapper:
    """An object that wraps a socket."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._inner.fileno()  # type: ignore[attr-defined, no-any-return]


class Slotted(Wrapper):
    """A wrapper without __dict__."""

    __slots__ = ("_inner",)


@pytest.fixture
def tls() -> Iterator[ssl.SSLSocket]:
    """Make a TLS socket before its handshake."""
    ours, theirs = socket.socketpair()
    context = ssl.create_default_context()
    with ours, context.wrap_socket(theirs, server_hostname="x", do_handshake_on_connect=False) as s:
        yield s


@pytest.mark.parametrize("wrap", [lambda s: s, Wrapper, Slotted, lambda s: Wrapper(Wrapper(s))])
@pytest.mark.parametrize("many", [True, False])
def test_tls_socket_is_refused(tls: ssl.SSLSocket, wrap: type[Wrapper], *, many: bool) -> None:
    """The error is raised before anything is sent, and names the reason."""
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
    """Such wrappers are its file, and the response of an HTTPS connection."""
    with tls.makefile("rb") as file, Client(path) as client:
        for each in (file, http.client.HTTPResponse(tls)):
            with each, pytest.raises(NotParkable):
                client.save_endp(60, "tls", "", each)
            assert issubclass(NotParkable, TypeError)


def test_plain_socket_beside_a_tls_socket_is_accepted(path: Path, tls: ssl.SSLSocket) -> None:
    """Only the socket with the saved descriptor matters."""
    ours, theirs = socket.socketpair()
    with Daemon(path), Client(path) as client, ours, theirs:
        wrapper = Wrapper(theirs)
        wrapper.other = tls  # type: ignore[attr-defined]
        assert client.save_endp(60, "plain", "", wrapper)
        found = client.find_endp("plain")
        assert found is not None
        found.close()


class Pooled(Wrapper):
    """A plain connection with a reference to its pool, and a property that must not be read."""

    def __init__(self, inner: object, pool: object) -> None:
        super().__init__(inner)
        self.pool = pool

    @property
    def socket(self) -> object:
        """Connect, as lazy properties do."""
        raise AssertionError("this has side effects")


def test_plain_socket_of_a_pool_with_tls_engines_is_accepted(path: Path) -> None:
    """The TLS engines belong to other connections of the pool. No property is read."""
    context = ssl.create_default_context()
    engine = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x")
    ours, theirs = socket.socketpair()
    with Daemon(path), Client(path) as client, ours, theirs:
        assert client.save_endp(60, "plain", "", Pooled(theirs, [engine, Wrapper(engine)]))
        found = client.find_endp("plain")
        assert found is not None
        found.close()
