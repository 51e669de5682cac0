"""Arguments that the clients refuse: before anything is sent, and by the name of the argument."""

from __future__ import annotations

import io
import math
import os
import socket
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest

import scache
from scache import AsyncClient, Client
from tests.support.clients import Connect

NOWHERE = "/nowhere"
"""A client of this path raises `Unavailable` as soon as it wants to send anything."""

NUMBER: Any = 5
LONG = "x" * 65_536
SAVE = (60, "endpoint", "properties", 0)


class Sample:
    """An object with a descriptor, or with something else in its place."""

    def __init__(self, value: object) -> None:
        self._value = value

    def fileno(self) -> int:
        """Return the value."""
        return cast(int, self._value)


def closed() -> socket.socket:
    """Return a closed socket."""
    sock = socket.socket()
    sock.close()
    return sock


WRONG: list[tuple[str, type[Exception], Callable[[Client], object]]] = [
    *[
        (message, kind, lambda client, ttl=ttl: client.save_endp(ttl, "e", "p", 0))
        for message, kind, ttl in [
            ("ttl must be at least 1 second, not 0", ValueError, 0),
            ("ttl must be at least 1 second, not -5", ValueError, -5),
            ("ttl must be a whole number of seconds, not bool", TypeError, True),
            ("ttl must be a whole number of seconds, not float", TypeError, 60.0),
            ("ttl must be a whole number of seconds, not str", TypeError, "60"),
            ("ttl must be a whole number of seconds, not None", TypeError, None),
        ]
    ],
    *[
        (message, kind, lambda client, each=each: client.save_endp(60, "e", "p", each))
        for message, kind, each in [
            ("connection must be a socket, .*, not bool", TypeError, True),
            ("connection must be a socket, .*, not float", TypeError, 0.0),
            ("connection must be a socket, .*, not str", TypeError, "0"),
            ("connection must be a socket, .*, not None", TypeError, None),
            ("connection must be .*, not fileno.. returns float", TypeError, Sample(0.0)),
            ("connection must be .*, not fileno.. returns None", TypeError, Sample(None)),
            (".*connection must be an open descriptor: -1 is not", OSError, -1),
            (".*connection must be an open descriptor: -1 is not", OSError, closed()),
            (".*connection must be an open descriptor: 10+ is not", OSError, 10**9),
            (".*connection must be an open descriptor: 10+ is not", OSError, 10**20),
            ("fileno", io.UnsupportedOperation, io.BytesIO()),
        ]
    ],
    *[
        (f"{name} {message}", kind, lambda client, text=text, ask=ask: ask(client, text))
        for name, ask in [
            ("endpoint", lambda client, text: client.save_endp(60, text, "p", 0)),
            ("properties", lambda client, text: client.save_endp(60, "e", text, 0)),
            ("destination", lambda client, text: client.save_dest(60, text, "p", "e")),
            ("properties", lambda client, text: client.save_dest(60, "d", text, "e")),
            ("endpoint", lambda client, text: client.save_dest(60, "d", "p", text)),
            ("endpoint", lambda client, text: client.find_endp(text)),
            ("destination", lambda client, text: client.find_dest(text)),
        ]
        for message, kind, text in [
            ("must be str or bytes, not int", TypeError, NUMBER),
            ("must be str or bytes, not None", TypeError, None),
            ("must be str or bytes, not list", TypeError, [1, 2]),
            ("must be str or bytes, not PosixPath", TypeError, Path("e")),
            ("must not contain a NUL byte", ValueError, "a\0b"),
            ("must not contain a NUL byte", ValueError, b"\0"),
            ("cannot be sent as UTF-8", ValueError, "\udcff"),
            (r"is too long \(65536 bytes\): the request would have 65", ValueError, LONG),
        ]
    ],
    *[
        (message, kind, lambda client, ask=ask: ask(client))
        for message, kind, ask in [
            (r"items\[1\]: ttl must", ValueError, lambda c: c.save_many([SAVE, (0, "", "", 0)])),
            (r"items\[1\]: ttl must", TypeError, lambda c: c.save_many([SAVE, (1.5, "", "", 0)])),
            (r"items\[0\]: connection", TypeError, lambda c: c.save_many([(60, "", "", 0.5)])),
            (r"items\[1\]: must be a tuple", TypeError, lambda c: c.save_many([SAVE, (60, "e")])),
            (r"items\[0\]: must be a tuple", TypeError, lambda c: c.save_many(["four"])),
            (r"items\[1\]: endpoint", ValueError, lambda c: c.save_many([SAVE, (1, LONG, "", 0)])),
            (r"items\[0\]: ttl must", ValueError, lambda c: c.save_dest_many([(0, "", "", "")])),
            (r"items\[0\]: must be a tuple", TypeError, lambda c: c.save_dest_many([60])),
            ("items must be an iterable", TypeError, lambda c: c.save_many(None)),
            (r"endpoints\[1\]: endpoint must", TypeError, lambda c: c.find_many(["e", NUMBER])),
            (r"endpoints\[1\]: endpoint is", ValueError, lambda c: c.find_many(["e", LONG])),
            ("endpoints must be .*, not one str", TypeError, lambda c: c.find_many("endpoint")),
            ("endpoints must be .*, not one bytes", TypeError, lambda c: c.find_many(b"endpoint")),
            ("destinations must be .*, not one", TypeError, lambda c: c.find_dest_many("d")),
            (r"destinations\[0\]: destination", TypeError, lambda c: c.find_dest_many([None])),
            ("endpoints must be .*, not one str", TypeError, lambda c: c.purge("endpoint")),
            (r"endpoints\[0\]: endpoint is", ValueError, lambda c: c.purge([LONG])),
            (r"destinations\[0\]: destination", TypeError, lambda c: c.purge((), [NUMBER])),
            ("ids must be an iterable", TypeError, lambda c: c.purge(ids=5)),
            (
                r"ids\[1\]: an id must be a whole number",
                TypeError,
                lambda c: c.purge(ids=[1, True]),
            ),
            (r"ids\[0\]: an id must be a whole number", TypeError, lambda c: c.purge(ids=[1.0])),
            (r"ids\[0\]: no connection has the id -1", ValueError, lambda c: c.purge(ids=[-1])),
            (r"ids\[0\]: no connection has the id", ValueError, lambda c: c.purge(ids=[2**63])),
        ]
    ],
]


@pytest.mark.parametrize(("message", "error", "request_"), WRONG)
def test_wrong_argument_is_refused_by_name_before_anything_is_sent(
    connect: Connect, message: str, error: type[Exception], request_: Callable[[Client], object]
) -> None:
    """Both clients raise the same error, also without a daemon."""
    with pytest.raises(error, match=message if error is OSError else f"^{message}") as caught:
        request_(connect(NOWHERE))
    assert type(caught.value) is error


@pytest.mark.usefixtures("daemon")
def test_integers_of_other_types_are_accepted(path: Path) -> None:
    """They have `__index__`, as the numbers of numpy do. A label may be any bytes-like object."""

    class Number:
        def __init__(self, value: int) -> None:
            self._value = value

        def __index__(self) -> int:
            return self._value

    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        with Client(path) as client:
            endpoint, properties = cast(bytes, bytearray(b"e")), cast(bytes, memoryview(b"p"))
            ttl, connection = cast(int, Number(60)), cast(int, Number(descriptor))
            assert client.save_endp(ttl, endpoint, properties, connection)
            found = client.find_endp("e")
            assert found is not None
            assert found.endpoint_properties == b"p"
            found.close()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (None, TypeError),
        (True, TypeError),
        ("5", TypeError),
        (Fraction(1, 2), TypeError),
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (1e10, ValueError),
        (10**400, ValueError),
    ],
)
def test_timeout_is_a_number_of_seconds(
    kind: type[Client | AsyncClient], timeout: float, error: type[Exception]
) -> None:
    """The clients do not wait for ever, and refuse it when they are made."""
    with pytest.raises(error, match=r"^timeout must be a number of seconds"):
        kind(NOWHERE, timeout=timeout)


@pytest.mark.usefixtures("daemon")
def test_longest_timeout_works(connect: Connect, path: Path) -> None:
    """It is some thirty years."""
    assert connect(path, timeout=1_000_000_000).find_endp("nothing") is None


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(("path", "error"), [(5, TypeError), (None, TypeError), ("", ValueError)])
def test_path_is_a_path(
    kind: type[Client | AsyncClient], path: str, error: type[Exception]
) -> None:
    """An empty one, as from an unset variable, is refused."""
    with pytest.raises(error, match=r"^path must"):
        kind(path)


def test_dir_lists_the_public_names() -> None:
    """They are listed before they are imported, and each exists."""
    listed = dir(scache)
    assert {*scache.__all__} <= {*listed}
    assert all(hasattr(scache, name) for name in listed)
    assert not {"import_module", "annotations", "TYPE_CHECKING", "_HOME"} & {*listed}
