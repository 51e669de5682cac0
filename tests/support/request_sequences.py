"""Sequences of valid and malformed requests, and the behaviour of the client that sends them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from tests.support.wire import DESCRIPTOR_BYTE, DUMMY, encode

TTL_LIMIT = 100_000
"""Seconds. With this limit, nothing expires during a test."""

TTLS = (b"1000", b"2000000", b"2147483647", b" 7000", b"+7000", b"007000", b"4294974296")
"""Values that scache and Postfix's scache(8) accept. The last one is 7,000 modulo 2**32."""

BAD_TTLS = (
    *(b"", b" ", b"0", b"-5", b"-1", b"abc", b"7 ", b"7\n", b"0x10", b"1.5", b"1_0", b"+-7"),
    *(b"- 7", b"\xa07", b"request", b"2147483648", b"4294967295", b"4294967296"),
    *(b"18446744073709551615", b"18446744073709551616", b"99999999999999999999999"),
)

ODD_TTLS = (
    *(b" 7", b"\t7", b"\n7", b"+7", b"07", b"0" * 3000 + b"7", b"99999999999", b"4294967297"),
    *(b"4294967301", b"-4294967290", b"-18446744073709551615"),
)
"""Values that both accept. Some of them are a few seconds."""

LABELS = (b"", b"plain", b"two\nlines\n", b"\xff\xfe\x80", b"request", b"x" * 3000, b"label")
DESTINATIONS = (b"", b"plain", b"request", b"y" * 3000)
PROPERTIES = (b"", b"plain", b"a\nb\n", b"\xc3\x28", b"request", b"z" * 3000)
SHORT = (b"", b"request", b"label", b"\xff", b"find_endp")
NEVER = b"never saved"

Attributes = tuple[tuple[bytes, bytes], ...]

EXTRAS = (
    (b"extra", b""),
    (b"extra", b"v"),
    (b"extra", b"request"),
    (b"request", b"v"),
    (b"request", b"find_endp"),
    (b"label", b"request"),
)

NO_REQUESTS = (
    b"\0",
    b"\0" * 7,
    DUMMY,
    encode([(b"ttl", b"5"), (b"label", b"x")]),
    encode([(b"Request", b"find_endp"), (b"label", b"x")]),
    encode([(b"a", b"request"), (b"b", b"c")]),
    encode([(b"a" * 5000, b"b" * 5000)]),
)


def save_endp(label: bytes, prop: bytes, ttl: bytes = b"1000") -> Attributes:
    """Return the request that saves a connection."""
    return (b"request", b"save_endp"), (b"ttl", ttl), (b"label", label), (b"property", prop)


def save_dest(label: bytes, prop: bytes, endpoint: bytes, ttl: bytes = b"1000") -> Attributes:
    """Return the request that binds an endpoint to a destination."""
    request = ((b"request", b"save_dest"), (b"ttl", ttl))
    return *request, (b"label", label), (b"property", prop), (b"label", endpoint)


def find_endp(label: bytes) -> Attributes:
    """Return the request that finds a connection of an endpoint."""
    return (b"request", b"find_endp"), (b"label", label)


def find_dest(label: bytes) -> Attributes:
    """Return the request that finds a connection to a destination."""
    return (b"request", b"find_dest"), (b"label", label)


class Step(NamedTuple):
    """A request, and the behaviour of the client in its exchange."""

    pieces: tuple[bytes, ...]
    """The parts of the request, which are sent one after the other."""

    answer: bytes = DESCRIPTOR_BYTE
    """The byte that the client sends when the server requests a descriptor."""

    with_descriptor: bool = True
    """True if that byte carries a descriptor."""

    glued: bool = False
    """True if the final dummy is held back to be sent with the next request."""


SENTINEL = Step((encode(find_endp(NEVER)),))
"""A request with a known reply. Replies before that one are replies to earlier steps."""


def spoil(request: Attributes) -> Iterator[bytes]:
    """Yield every message that is this request with one change."""
    for at, (name, value) in enumerate(request):
        before, after = request[:at], request[at + 1 :]
        yield encode(before)
        yield encode(before + after)
        yield encode((*before, (name, value), (name, value), *after))
        yield encode((*before, (b"wrong", value), *after))
        yield encode((*before, *after, (name, value)))
        if name == b"ttl":
            for ttl in BAD_TTLS:
                yield encode((*before, (name, ttl), *after))
        if name == b"request":
            for other in (b"", b"unknown", b"request", value.upper(), value + b" "):
                yield encode(((name, other), *after))
    for at in range(len(request) + 1):
        for extra in EXTRAS:
            yield encode((*request[:at], extra, *request[at:]))


def random_steps(random: Random, count: int) -> Iterator[Step]:
    """Yield ``count`` or more steps that fill a cache and use it.

    A malformed request is followed by SENTINEL.
    """
    made = 0
    while made < count:
        if random.random() < 0.25:
            yield Step((_random_bad(random),))
            yield SENTINEL
            made += 2
        else:
            yield _random_good(random)
            made += 1


def _random_good(random: Random) -> Step:
    request = random.choices(
        (
            save_endp(*map(random.choice, (LABELS, PROPERTIES, TTLS))),
            save_dest(*map(random.choice, (DESTINATIONS, PROPERTIES, LABELS, TTLS))),
            find_endp(random.choice(LABELS)),
            find_dest(random.choice(DESTINATIONS)),
        ),
        (40, 15, 20, 25),
    )[0]
    pieces: tuple[bytes, ...] = (encode(request),)
    if random.random() < 0.2:
        (whole,) = pieces
        cuts = sorted(random.choices(range(len(whole) + 1), k=random.randrange(1, 30)))
        pieces = tuple(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True))
    return Step(
        pieces,
        answer=b"x" if random.random() < 0.1 else DESCRIPTOR_BYTE,
        with_descriptor=random.random() < 0.9,
        glued=random.random() < 0.4,
    )


def _random_bad(random: Random) -> bytes:
    one, two, three = random.choices(SHORT, k=3)
    requests = (
        *(save_endp(one, two), save_dest(one, two, three)),
        *(find_endp(NEVER), find_dest(NEVER)),
    )
    return random.choice([*spoil(random.choice(requests)), *NO_REQUESTS])
