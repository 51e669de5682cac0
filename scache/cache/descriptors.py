"""The table of live descriptors: the one owner of every descriptor that is parked or lent."""

from __future__ import annotations

from collections.abc import Iterator

from scache import fdpass


class Descriptors:
    """Descriptors by row id.

    A descriptor is parked here when its connection is saved, lent to the client
    that found it, and closed when that client has it. Nobody else closes one.
    Nothing is ever read from one, and no flag of it is changed: its next owner
    shares them.
    """

    def __init__(self) -> None:
        self._parked: dict[int, int] = {}
        self._lent: dict[int, int] = {}

    def __len__(self) -> int:
        """Return how many are parked."""
        return len(self._parked)

    def __repr__(self) -> str:
        return f"<Descriptors parked={len(self._parked)} lent={len(self._lent)}>"

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield row id and descriptor of each that is parked or lent."""
        yield from self._parked.items()
        yield from self._lent.items()

    def park(self, row_id: int, descriptor: int) -> None:
        """Take ownership of a descriptor."""
        self._parked[row_id] = descriptor

    def lend(self, row_id: int) -> int:
        """Set one aside for delivery, and return it."""
        descriptor = self._lent[row_id] = self._parked.pop(row_id)
        return descriptor

    def take_back(self, row_id: int) -> int:
        """Return one that was lent and never sent: it is to be parked again."""
        return self._lent.pop(row_id)

    def close_lent(self, row_id: int) -> None:
        """Close one that was delivered, or whose time ran out while it was lent."""
        fdpass.close((self._lent.pop(row_id),))

    def close_parked(self, row_id: int) -> None:
        """Close one whose time is over."""
        fdpass.close((self._parked.pop(row_id),))

    def close_all(self) -> None:
        """Close everything: the daemon ends."""
        for table in (self._parked, self._lent):
            fdpass.close(table.values())
            table.clear()
