"""Reports on an image: the filtered audit log, and the statistics of ``scache stats``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from scache.inspection import labels
from scache.inspection.image import Image, Result, Value
from scache.store.serialized import CLASSES, CLIENTS_SERVED, FAULT, LOG_BYTES
from scache.vocabulary import (
    BINDING_WAYS_OUT,
    COUNTERS,
    FINDS_CONTINUED,
    MISS_COUNTERS,
    REQUESTS,
    WAYS_OUT,
)

_LIMIT: Final = "limit_"
"""Prefix of the counters that count how often a limit was reached."""

_FINDS = ("find_endp", "find_dest")

_NOW = """
    SELECT
        (SELECT count(*) FROM client WHERE disconnected_at IS NULL),
        (SELECT count(*) FROM connection),
        (SELECT count(DISTINCT endpoint) FROM connection),
        (SELECT min(saved_at) FROM connection),
        (SELECT min(expires_at) FROM connection),
        (SELECT max(expires_at - saved_at) FROM connection),
        (SELECT count(*) FROM binding),
        (SELECT count(DISTINCT destination) FROM binding),
        (SELECT count(*) FROM event),
        (SELECT min(at) FROM event),
        (SELECT max(n) FROM (SELECT count(*) AS n FROM connection GROUP BY endpoint)),
        (SELECT max(n) FROM (SELECT count(*) AS n FROM binding GROUP BY destination)),
        (SELECT count(*) FROM descriptor)
"""
_INSTANCE = """
    SELECT id, version, pid, started_at, stopped_at, started_at - coalesce(booted_at, 0)
    FROM instance ORDER BY id DESC LIMIT 1
"""
_SAME_INSTANCE = """
    SELECT count(*) FROM instance WHERE id = :id AND pid = :pid
        AND abs(started_at - coalesce(booted_at, 0) - :since_boot) < 0.001
"""
_COUNTERS = "SELECT name, value FROM counter ORDER BY name"
_SETTINGS = "SELECT name, value FROM setting ORDER BY name"
_TRAIL_IS_OFF = "SELECT count(*) FROM setting WHERE name = 'audit_rows' AND value = '0'"
_MOMENT = "(SELECT event.at FROM event WHERE event.id = event_log.id)"
"""The exact time of a row of ``event_log``, which has it as text in milliseconds."""
_BYTES = """
    SELECT (
        SELECT ifnull(sum(length(CAST(endpoint AS BLOB)) + length(CAST(properties AS BLOB))), 0)
        FROM connection
    ) + (
        SELECT ifnull(sum(length(CAST(destination AS BLOB)) + length(CAST(endpoint AS BLOB))
            + length(CAST(properties AS BLOB))), 0)
        FROM binding
    )
"""
_SIZE = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"


class Instance(NamedTuple):
    """The latest run of the daemon in an image."""

    id: int
    version: str
    pid: int
    started_at: float
    stopped_at: float | None
    """None while the daemon runs, and after a crash."""
    since_boot: float
    """Seconds from the boot to the start of the daemon; setting the clock does not change it."""


_Condition = tuple[str, Mapping[str, Value | str]]
"""A condition in SQL, and its parameters."""

_HITS = """
    SELECT connection_id FROM event
    WHERE kind IN ('find_endp', 'find_dest') AND status = 0 AND connection_id IS NOT NULL
"""
"""The connections that finds hit, in the events that are kept."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """The criteria of events to report. An event must meet all criteria that are given.

    Patterns are those of `scache.inspection.labels.fits`.
    """

    endpoint: bytes | None = None
    """A pattern."""
    destination: bytes | None = None
    """A pattern."""
    fields: Sequence[bytes] = ()
    """Whole fields of a label. The endpoint has all of them, or the destination has all of them."""
    ids: Sequence[int] = ()
    """Ids of connections and bindings; the event has any of them."""
    pid: int | None = None
    """The process id of the client."""
    program: bytes | None = None
    """A pattern for the name of the client's program."""
    kinds: Sequence[str] = ()
    """Kinds of events. If empty, all events except successful `snapshot` requests are reported."""
    outcomes: Sequence[str] = ()
    """Outcomes of requests. If empty, all events are reported, also those that are no requests."""
    since: float | None = None
    """Seconds since the epoch."""
    one_for_a_hit: bool = False
    """True to leave out `found` events without ``kinds``: the find that hit is reported already."""


def events(image: Image, wanted: Filter, after: int = 0, last: int | None = None) -> Result:
    """Return the rows of the view ``event_log`` with ids above ``after``, in the order of time.

    If ``last`` is given, only the latest ``last`` of them are returned. Ids are in the order of
    writing, which differs from the order of time within one write.
    """
    labels.prepare(image)
    conditions, parameters = _of_labels(wanted)
    for condition, more in (*_of_ids(wanted), *_of_kinds(wanted)):
        conditions.append(condition)
        parameters |= more
    conditions.append("id > :after")
    parameters["after"] = after
    fits = " AND ".join(conditions)
    if last is not None:
        fits = f"""
            id IN (
                SELECT id FROM event_log WHERE {fits} ORDER BY {_MOMENT} DESC, id DESC LIMIT :last
            )
        """
        parameters["last"] = last
    sql = f"SELECT * FROM event_log WHERE {fits} ORDER BY {_MOMENT}, id"
    return image.execute(sql, parameters)


def _of_labels(wanted: Filter) -> tuple[list[str], dict[str, Value | str]]:
    """Return the SQL conditions for labels and programs, and their parameters."""
    conditions: list[str] = []
    parameters: dict[str, Value | str] = {}
    for name in ("endpoint", "destination", "program"):
        pattern = getattr(wanted, name)
        if pattern is not None:
            conditions.append(labels.fits(name, name, pattern))
            parameters[name] = pattern
    if wanted.fields:
        columns = ("endpoint", "destination")
        either = " OR ".join(labels.has_fields(each, wanted.fields) for each in columns)
        conditions.append(f"({either})")
        parameters |= labels.field_parameters(wanted.fields)
    return conditions, parameters


def _of_ids(wanted: Filter) -> Iterator[_Condition]:
    if wanted.ids:
        columns = ("connection_id", "binding_id")
        either = " OR ".join(labels.is_one_of(each, wanted.ids) for each in columns)
        yield f"({either})", {}
    if wanted.pid is not None:
        yield "pid = :pid", {"pid": wanted.pid}


def _of_kinds(wanted: Filter) -> Iterator[_Condition]:
    for column, values in (("kind", wanted.kinds), ("outcome", wanted.outcomes)):
        if values:
            names = {f"{column}{number}": value for number, value in enumerate(values)}
            yield f"{column} IN ({', '.join(f':{name}' for name in names)})", names
    if not wanted.kinds:
        yield "(kind <> 'snapshot' OR outcome IS NOT 'ok')", {}
        if wanted.one_for_a_hit:
            yield f"(kind <> 'found' OR connection_id NOT IN ({_HITS}))", {}
    if wanted.since is not None:
        since = {"since": wanted.since}
        yield "at >= strftime('%Y-%m-%dT%H:%M:%fZ', :since, 'unixepoch')", since


def instance(image: Image) -> Instance | None:
    """Return the latest run of the daemon; None if there was no run."""
    for row in image.execute(_INSTANCE).rows:
        number, version, *rest = row
        assert isinstance(version, bytes)
        return Instance(number, version.decode(), *rest)  # type: ignore[arg-type]
    return None


def remembers(image: Image, earlier: Instance) -> bool:
    """Return True if the database of the image contains this run; if not, event ids restarted."""
    known = {"id": earlier.id, "pid": earlier.pid, "since_boot": earlier.since_boot}
    return next(image.execute(_SAME_INSTANCE, known).rows)[0] == 1


def latest_event(image: Image) -> int:
    """Return the id of the latest event; 0 if there is none."""
    ((latest,),) = image.execute("SELECT coalesce(max(id), 0) FROM event").rows
    assert isinstance(latest, int)
    return latest


def records_events(image: Image) -> bool:
    """Return True if the daemon of the image keeps an audit log."""
    return next(image.execute(_TRAIL_IS_OFF).rows)[0] == 0


def statistics(image: Image, now: float, *, live: bool) -> dict[str, Any]:
    """Return the statistics of an image, taken at ``now`` (seconds since the epoch), by section.

    ``live`` is true if a running daemon has just sent the image. Each section is a dictionary. Ages
    and remaining times are in seconds, and None if there is no such row. A missing counter is 0,
    and a limit of 0 means no limit.
    """
    (row,) = image.execute(_NOW).rows
    clients, connections, endpoints, saved_at, expires_at, ttl, *rest = row
    bindings, destinations, kept, oldest_event, of_endpoint, of_destination, files = rest
    counters = dict.fromkeys(COUNTERS, 0) | _texts(image.execute(_COUNTERS).rows)
    settings = _texts(image.execute(_SETTINGS).rows)
    ((size,),) = image.execute(_SIZE).rows
    ((size_cached,),) = image.execute(_BYTES).rows
    # Only the image of a live daemon has this number; a file does not show refused clients.
    served = _number(settings.pop(CLIENTS_SERVED, str(clients)))
    log = settings.pop(LOG_BYTES, None)
    classes = settings.pop(CLASSES, None)
    in_use = {
        "max_clients": min(served, _number(settings.get("max_clients", ""))),
        "max_connections": connections,
        # The highest value of any endpoint or destination.
        "max_connections_per_endpoint": of_endpoint,
        "max_bindings_per_destination": of_destination,
        "max_bindings": bindings,
        "max_bytes": size_cached,
        # An estimate: other open files of the daemon are not in an image, nor any in a file.
        "open_files_limit": max(connections, files) + clients,  # type: ignore[type-var, operator]
        "ttl_limit": ttl,
        "audit_rows": kept,
    }
    return {
        "daemon": _daemon(instance(image), now, live=live),
        "clients": {"connected": clients, "total": counters.get("clients_connected", 0)},
        "connections": {
            "cached": connections,
            "endpoints": endpoints,
            "oldest": _age(saved_at, now),
            "next_expiry": None if expires_at is None else round(expires_at - now, 3),  # type: ignore[operator]
        },
        "bindings": {"live": bindings, "destinations": destinations},
        "events": {
            "kept": kept,
            "oldest": _age(oldest_event, now),
            "dropped": counters.get("events_dropped", 0),
        },
        "requests": {kind: _outcomes(kind, counters) for kind in REQUESTS},
        "hit_rate": hit_rate(counters),
        "misses": {reason: counters.get(name, 0) for reason, name in MISS_COUNTERS.items()},
        "ways_out": {way: counters.get(f"connections_{way}", 0) for way in WAYS_OUT},
        "bindings_out": {way: counters.get(f"bindings_{way}", 0) for way in BINDING_WAYS_OUT},
        "limits": {
            name: {"now": _whole(now_used or 0), "limit": limit}
            for name, now_used in in_use.items()
            if (limit := _number(settings.get(name, "")))
        },
        "limits_reached": {
            name.removeprefix(_LIMIT): count
            for name, count in counters.items()
            if name.startswith(_LIMIT)
        },
        "settings": settings,
        # Only the image of a live daemon with classes has their counts.
        "classes": {} if classes is None else json.loads(classes),
        # Only the image of a live daemon has the size of its log and the fault.
        "database": {
            "bytes": size,
            "log_bytes": None if log is None else _number(log),
            "fault": settings.pop(FAULT, None),
        },
        "counters": counters,
    }


def hit_rate(counters: Mapping[str, int]) -> dict[str, float | None]:
    """Return the shares of finds and of deliveries that hit; None if there is none yet.

    A delivery is a ``find_dest`` and the ``find_endp`` that continue it.
    """
    hits = sum(counters.get(f"{kind}_ok", 0) for kind in _FINDS)
    finds = hits + sum(counters.get(f"{kind}_fail", 0) for kind in _FINDS)
    deliveries = finds - counters.get(FINDS_CONTINUED, 0)
    return {
        "per_find": round(hits / finds, 4) if finds else None,
        "per_delivery": round(hits / deliveries, 4) if deliveries else None,
    }


def _daemon(latest: Instance | None, now: float, *, live: bool) -> dict[str, Any]:
    if latest is None:
        return {}
    _, version, pid, started_at, stopped_at, _ = latest
    daemon: dict[str, Any] = {"version": version, "pid": pid, "uptime": None, "running": None}
    if live or stopped_at is not None:
        daemon["uptime"] = _age(started_at, now if stopped_at is None else stopped_at)
        daemon["running"] = stopped_at is None
    return daemon  # in a file, a running daemon looks the same as a crashed one


def _outcomes(kind: str, counters: dict[str, Any]) -> dict[str, Any]:
    done, failed, bad = (counters.get(f"{kind}_{each}", 0) for each in ("ok", "fail", "bad"))
    outcomes = {"ok": done, "fail": failed, "bad": bad}
    if kind in _FINDS:
        outcomes["hit_rate"] = round(done / (done + failed), 4) if done + failed else None
    return outcomes


def _age(moment: Any, now: float) -> float | None:  # noqa: ANN401 - of a row
    """Return the seconds since a moment; 0 if the clock was set back since then."""
    return None if moment is None else round(max(now - moment, 0), 3)


def _texts(rows: Iterable[tuple[Value, ...]]) -> dict[str, Any]:
    return {_text(name): _text(value) for name, value in rows}


def _text(value: Value) -> Any:  # noqa: ANN401 - only bytes become text
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _number(text: str) -> float:
    """Convert a text to a number; 0 if it is not a number."""
    try:
        return _whole(float(text))
    except ValueError:
        return 0


def _whole(number: Any) -> float:  # noqa: ANN401 - of a row
    number = round(number, 3)
    return int(number) if number == int(number) else float(number)
