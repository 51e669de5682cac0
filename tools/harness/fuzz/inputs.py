"""The format of an input: flags, how the stream is cut, and the bytes that a peer sends.

An input is one byte of flags, one byte with the number of controls, the controls, and the stream.
A control is two bytes and stands for one recvmsg(2): the size of its piece of the stream, and what
comes with that piece. The stream stays contiguous, so that an engine can mutate it as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CLIENT = 1
"""Flag: fuzz the client's half; the stream is the bytes of a server."""
ANNOUNCE = 2
"""Flag for a server: send the announcement first."""
PERMIT = 4
"""Flag for a server: grant the requests of administrators."""
STRETCH = 8
"""Flag: replace each `STRETCHED` byte of the stream by `STRETCH_TO`, so that limits are reached."""
STRETCHED = b"\x01"
STRETCH_TO = b"x" * 6000

MAX_PIECES = 64
MANY_SIZES = 16
"""Sizes from 256 - MANY_SIZES on count kilobytes."""
LOST = 0x40
"""Bit of a control's second byte: the kernel dropped a descriptor. Used for a server only."""
MORE_TO_READ = 0x80
"""Bit of a control's second byte: more data is ready, so no descriptor is surplus yet."""
COUNTS = (0, 0, 0, 1, 1, 2, 3, 253)
"""Descriptors that come with a piece, by the three low bits of a control's second byte."""
EXCHANGE_SHIFT = 3
"""The bits from here on are, for a client, the exchange that it begins with that piece."""


class Piece(NamedTuple):
    """The result of one recvmsg(2)."""

    data: bytes
    descriptors: int
    lost: bool
    more: bool


class Input(NamedTuple):
    """An input, parsed."""

    flags: int
    pieces: list[Piece]
    exchanges: list[int]

    @property
    def stream(self) -> bytes:
        """All bytes of the peer."""
        return b"".join(piece.data for piece in self.pieces)


def read(data: bytes) -> Input:
    """Parse an input; any bytes are one."""
    flags, count = (data[0], data[1]) if len(data) > 1 else (0, 0)
    count = min(count, MAX_PIECES, max(0, len(data) - 2) // 2)
    controls, stream = data[2 : 2 + 2 * count], data[2 + 2 * count :]
    if flags & STRETCH:
        stream = stream.replace(STRETCHED, STRETCH_TO)
    pieces, exchanges, at = [], [], 0
    for size, control in zip(controls[::2], controls[1::2], strict=True):
        many = size >= 256 - MANY_SIZES
        piece = stream[at : at + ((size - 256 + MANY_SIZES) * 1024 if many else size)]
        at += len(piece)
        lost, more = bool(control & LOST), bool(control & MORE_TO_READ)
        pieces.append(Piece(piece, COUNTS[control & 7], lost, more))
        exchanges.append(control >> EXCHANGE_SHIFT)
    pieces.append(Piece(stream[at:], 0, lost=False, more=False))
    return Input(flags, pieces, exchanges)


def write(flags: int, pieces: Sequence[tuple[bytes, int]], exchanges: Sequence[int] = ()) -> bytes:
    """Return the input for these pieces, each given as its bytes and number of descriptors."""
    controls, stream = bytearray(), bytearray()
    for at, (data, count) in enumerate(pieces[:MAX_PIECES]):
        size = min(len(data), 255 - MANY_SIZES)
        control = COUNTS.index(count) if count in COUNTS else COUNTS.index(253)
        if at < len(exchanges):
            control |= (exchanges[at] << EXCHANGE_SHIFT) & 0xFF
        controls += bytes((size, control))
        stream += data
    return bytes((flags, len(controls) // 2)) + bytes(controls) + bytes(stream)
