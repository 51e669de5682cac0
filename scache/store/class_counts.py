"""Counts of requests and misses by class of their labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import translate
from typing import Final

from scache.model import AuditEvent, Status
from scache.settings.classes import LabelClass
from scache.vocabulary import OUTCOMES

_KINDS: Final = ("save_endp", "find_endp", "save_dest", "find_dest")

_KNOWN: Final = 4096
"""Labels whose classes are remembered; then all are forgotten."""
_LONGEST: Final = 256
"""Bytes of the longest label that is remembered."""


class ClassCounts:
    """Counts since the start of the daemon, for the configured classes only.

    The first class counts whose pattern fits the label: that of a destination for ``find_dest`` and
    ``save_dest``, else that of an endpoint. A label that fits none is not counted here.
    """

    def __init__(self, classes: Sequence[LabelClass] = ()) -> None:
        self._requests = Counter[tuple[str, str, int]]()
        self._misses = Counter[tuple[str, str]]()
        self.change(classes)

    def change(self, classes: Sequence[LabelClass]) -> None:
        """Use other classes from now on; the counts of the same names go on."""
        self.active = bool(classes)
        """False if no class is configured, so that there is nothing to count."""
        self._names = [each.name for each in classes]
        endpoints = [(each.name, each.endpoint) for each in classes]
        destinations = [(each.name, each.destination or each.endpoint) for each in classes]
        self._patterns = {False: _compiled(endpoints), True: _compiled(destinations)}
        self._known: dict[tuple[bool, bytes], str | None] = {}

    def count(self, kind: str, status: int, label: bytes) -> None:
        """Count a request with a label."""
        if (name := self.class_of(label, is_destination=kind.endswith("dest"))) is not None:
            self._requests[name, kind, status] += 1

    def count_event(self, event: AuditEvent) -> None:
        """Count a save or a find that has a label."""
        if event.kind in _KINDS and event.status is not None:
            label = event.destination if event.kind.endswith("dest") else event.endpoint
            if label is not None:
                self.count(event.kind, event.status, label)

    def count_miss(self, kind: str, reason: str, label: bytes) -> None:
        """Count a find that missed."""
        if (name := self.class_of(label, is_destination=kind.endswith("dest"))) is not None:
            self._misses[name, reason] += 1

    def class_of(self, label: bytes, *, is_destination: bool) -> str | None:
        """Return the name of the first class that fits; None for the others."""
        key = is_destination, label
        if key in self._known:
            return self._known[key]
        text = label.decode(errors="surrogateescape")
        patterns = self._patterns[is_destination]
        name = next((name for name, pattern in patterns if pattern.match(text)), None)
        if len(label) <= _LONGEST:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = name
        return name

    def figures(self) -> dict[str, dict[str, dict[str, object]]]:
        """Return the counts of the configured classes, as the request ``stats`` has them."""
        requests: dict[str, dict[str, object]] = {name: {} for name in self._names}
        misses: dict[str, dict[str, object]] = {name: {} for name in self._names}
        for (name, kind, status), number in self._requests.items():
            if name in requests:
                empty = dict.fromkeys(OUTCOMES, 0)
                outcomes = requests[name].setdefault(kind, empty)
                assert isinstance(outcomes, dict)
                outcomes[Status(status).name.lower()] = number
        for (name, reason), number in self._misses.items():
            if name in misses:
                misses[name][reason] = number
        return {"requests": requests, "find_misses": misses}


def _compiled(patterns: Sequence[tuple[str, str | None]]) -> list[tuple[str, re.Pattern[str]]]:
    return [(name, re.compile(translate(each))) for name, each in patterns if each is not None]
