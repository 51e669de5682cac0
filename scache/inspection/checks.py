"""The invariants of a database of scache, each with a statement that finds violations.

A rule about the audit log covers only the events that the log still has. It is skipped if events
that it needs were trimmed, dropped or not recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from scache.errors import DatabaseError, QueryError
from scache.inspection.image import Image, Result, Value
from scache.store.schema import SCHEMA, ours
from scache.store.serialized import FAULT, MAX_DISCONNECTED_CLIENTS
from scache.vocabulary import BINDING_WAYS_OUT, MISS_COUNTERS, REQUESTS, WAYS_OUT

COLUMNS: Final = ["check", "result", "found", "detail"]

SHOWN: Final = 3
"""Violations of a rule that a report names; the others are only counted."""

OK, WRONG, SKIPPED = b"ok", b"wrong", b"skipped"


class Check(NamedTuple):
    """An invariant of the database."""

    name: str
    sql: str
    """Selects the violations of the rule, each as a row of one text."""
    sentence: str
    """A description of the violations."""
    condition: str = "1"
    """An SQL expression that is true if the rule can be checked in this image."""


_WAYS = ", ".join(f"'{way}'" for way in WAYS_OUT)
_BINDING_WAYS = ", ".join(f"'{way}'" for way in BINDING_WAYS_OUT)

_LIVE = "(:live OR EXISTS (SELECT 1 FROM descriptor))"
_WELL = f"NOT EXISTS (SELECT 1 FROM setting WHERE name = '{FAULT}')"
_STOPPED = "(SELECT stopped_at IS NOT NULL FROM instance ORDER BY id DESC LIMIT 1)"
_SETTLED = f"({_LIVE} OR coalesce({_STOPPED}, 1))"
"""True in a live image or after an orderly stop: each connection has a row or a close reason."""
_LATEST = """
    SELECT max(moment) FROM (
        SELECT max(connected_at) AS moment FROM client WHERE disconnected_at IS NULL
        UNION ALL SELECT max(saved_at) FROM connection
        UNION ALL SELECT max(saved_at) FROM binding
        UNION ALL SELECT max(at) FROM event
        WHERE NOT EXISTS (SELECT 1 FROM clock_step) AND client_id > (
            SELECT coalesce(max(last_id), 0) FROM instance
            WHERE id < (SELECT max(id) FROM instance)
        )
    )
"""
"""The latest time in the database that has passed. Events count only if the clock was never set,
because their times do not move with it, and only those of this run."""
_RECORDED = f"""
    {_WELL}
    AND NOT EXISTS (SELECT 1 FROM counter WHERE name = 'events_dropped' AND value > 0)
    AND coalesce((SELECT value FROM setting WHERE name = 'audit_rows'), '1') <> '0'
"""
_COMPLETE = """
    (SELECT coalesce(min(id), 1) = 1 FROM event)
    AND NOT EXISTS (
        SELECT 1 FROM counter
        WHERE name IN ('events_dropped', 'runs_not_recorded') AND value > 0
    )
"""
_EVERY_CLIENT = f"""
    (SELECT count(*) < {MAX_DISCONNECTED_CLIENTS} FROM client WHERE disconnected_at IS NOT NULL)
    AND NOT EXISTS (SELECT 1 FROM counter WHERE name = 'clients_not_recorded' AND value > 0)
"""
_NAMED = """
    SELECT 'connection' AS kind, id FROM connection
    UNION SELECT 'binding', id FROM binding
    UNION SELECT 'client', id FROM client
    UNION SELECT 'connection', connection_id FROM event WHERE connection_id IS NOT NULL
    UNION SELECT 'binding', binding_id FROM event WHERE binding_id IS NOT NULL
    UNION SELECT 'client', client_id FROM event WHERE client_id IS NOT NULL
    UNION SELECT 'client', client_id FROM connection
    UNION SELECT 'client', client_id FROM binding
"""
_STATUSES = (("ok", 0), ("bad", 1), ("fail", 2))
_COUNTED = " UNION ALL ".join(
    [
        f"SELECT kind || '_{name}' AS name, count(*) AS events FROM event "
        f"WHERE status = {status} GROUP BY kind"
        for name, status in _STATUSES
    ]
    + [
        f"""
        SELECT 'connections_' || kind, count(*) FROM event
        WHERE kind IN ({_WAYS}) AND connection_id IS NOT NULL GROUP BY kind
        """,
        f"""
        SELECT 'bindings_' || kind, count(*) FROM event
        WHERE kind IN ({_BINDING_WAYS}) AND connection_id IS NULL GROUP BY kind
        """,
        """
        SELECT 'find_misses_' || reason, count(*) FROM find_miss
        WHERE reason IS NOT NULL GROUP BY reason
        """,
    ]
)
_COUNTERS = ", ".join(
    f"'{name}'"
    for name in (
        *(f"{kind}_{name}" for kind in REQUESTS for name, _ in _STATUSES),
        *(f"connections_{way}" for way in WAYS_OUT),
        *(f"bindings_{way}" for way in BINDING_WAYS_OUT),
        *MISS_COUNTERS.values(),
    )
)

CHECKS: Final = (
    Check(
        "integrity",
        "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
        "the integrity check of SQLite found damage",
    ),
    Check(
        "fault",
        f"SELECT value FROM setting WHERE name = '{FAULT}'",
        "the database of the daemon has a fault",
    ),
    Check(
        "connections without a descriptor",
        "SELECT id FROM connection EXCEPT SELECT connection_id FROM descriptor ORDER BY 1",
        "these connections have no descriptor, so no client can get them",
        f"{_LIVE} AND {_WELL}",
    ),
    Check(
        "descriptors without a connection",
        "SELECT connection_id FROM descriptor EXCEPT SELECT id FROM connection ORDER BY 1",
        "these descriptors have no connection, so no client can find them (ids of connections)",
        f"{_LIVE} AND {_WELL}",
    ),
    Check(
        "descriptors",
        """
        SELECT 'connection ' || connection_id || ', descriptor ' || fd FROM descriptor
        WHERE kind = 'closed' OR fd IN (SELECT fd FROM descriptor GROUP BY fd HAVING count(*) > 1)
        ORDER BY connection_id
        """,
        "these descriptors are closed, or belong to two connections",
        _LIVE,
    ),
    Check(
        "connections gone without a way out",
        f"""
        SELECT connection_id FROM event WHERE kind = 'save_endp' AND status = 0
        EXCEPT SELECT id FROM connection
        EXCEPT SELECT connection_id FROM event WHERE kind IN ({_WAYS})
        ORDER BY 1
        """,
        "these were saved and are not cached, but no event says how they left",
        f"{_RECORDED} AND {_SETTLED}",
    ),
    Check(
        "connections with two ways out",
        f"""
        SELECT connection_id FROM event
        WHERE kind IN ({_WAYS}) AND connection_id IS NOT NULL
        GROUP BY connection_id HAVING count(*) > 1 ORDER BY 1
        """,
        "according to events, these left more than once",
    ),
    Check(
        "connections both here and gone",
        f"""
        SELECT id FROM connection
        INTERSECT SELECT connection_id FROM event WHERE kind IN ({_WAYS}) ORDER BY 1
        """,
        "according to events, these left, but they are cached",
        _WELL,
    ),
    Check(
        "connections without a save",
        """
        SELECT id FROM connection
        EXCEPT SELECT connection_id FROM event WHERE kind = 'save_endp' AND status = 0 ORDER BY 1
        """,
        "these are cached, and no event says which client saved them",
        f"{_WELL} AND {_COMPLETE}",
    ),
    Check(
        "bindings gone without a way out",
        f"""
        SELECT binding_id FROM event WHERE kind = 'save_dest' AND status = 0
        EXCEPT SELECT id FROM binding
        EXCEPT SELECT binding_id FROM event
            WHERE kind IN ({_BINDING_WAYS}) AND connection_id IS NULL
        ORDER BY 1
        """,
        "these were saved and are not cached, but no event says how they left",
        f"{_RECORDED} AND NOT EXISTS (SELECT 1 FROM counter WHERE name = 'runs_not_recorded')",
    ),
    Check(
        "bindings with two ways out",
        f"""
        SELECT binding_id FROM event
        WHERE kind IN ({_BINDING_WAYS}) AND connection_id IS NULL
        GROUP BY binding_id HAVING count(*) > 1 ORDER BY 1
        """,
        "according to events, these left more than once",
    ),
    Check(
        "bindings both here and gone",
        f"""
        SELECT id FROM binding INTERSECT SELECT binding_id FROM event
        WHERE kind IN ({_BINDING_WAYS}) AND connection_id IS NULL ORDER BY 1
        """,
        "according to events, these left, but they are cached",
        _WELL,
    ),
    Check(
        "counters below the audit log",
        f"""
        SELECT name || ' is ' || coalesce(value, 0) || ', with ' || events || ' events'
        FROM ({_COUNTED}) LEFT JOIN counter USING (name)
        WHERE coalesce(value, 0) < events ORDER BY name
        """,
        "these counters are lower than the events that they count",
        _WELL,
    ),
    Check(
        "counters above the audit log",
        f"""
        SELECT name || ' is ' || value || ', with ' || coalesce(events, 0) || ' events'
        FROM counter LEFT JOIN ({_COUNTED}) USING (name)
        WHERE name IN ({_COUNTERS}) AND value > coalesce(events, 0) ORDER BY name
        """,
        "these counters are higher than the events that they count, of which none was dropped",
        f"{_WELL} AND {_SETTLED} AND {_COMPLETE}",
    ),
    Check(
        "ids used twice",
        f"""
        SELECT id || ' (' || group_concat(kind, ', ') || ')'
        FROM (SELECT kind, id FROM ({_NAMED}) ORDER BY id, kind)
        GROUP BY id HAVING count(*) > 1
        UNION ALL SELECT id || ' (connections)' FROM connection GROUP BY id HAVING count(*) > 1
        UNION ALL SELECT id || ' (bindings)' FROM binding GROUP BY id HAVING count(*) > 1
        """,
        "these ids were used more than once",
    ),
    Check(
        "ids never given out",
        f"""
        SELECT kind || ' ' || id FROM ({_NAMED})
        WHERE id > (SELECT coalesce(max(last_id), 0) FROM instance) OR id < 1 ORDER BY id
        """,
        "these ids are outside those that a run has reserved (instance.last_id)",
    ),
    Check(
        "times",
        """
        SELECT 'connection ' || id FROM connection
        WHERE expires_at < saved_at OR expires_at > saved_at + 0.001 + (
            SELECT CAST(value AS REAL) FROM setting WHERE name = 'ttl_limit'
        )
        UNION ALL SELECT 'binding ' || id FROM binding WHERE expires_at < saved_at
        UNION ALL SELECT 'instance ' || id FROM instance WHERE stopped_at < started_at
        UNION ALL SELECT 'event ' || id FROM event WHERE ttl < 0
        """,
        "these end before they begin, or last longer than ttl_limit allows",
    ),
    Check(
        "overdue",
        f"""
        SELECT kind || ' ' || id FROM (
            SELECT 'connection' AS kind, id, expires_at FROM connection
            UNION ALL SELECT 'binding', id, expires_at FROM binding
        )
        WHERE expires_at < ({_LATEST}) - 5 - (
            SELECT CAST(value AS REAL) FROM setting WHERE name = 'exchange_timeout'
        )
        ORDER BY id
        """,
        "these expired long before the latest request, but are still cached",
        f"{_LIVE} AND {_WELL}",
    ),
    Check(
        "clients",
        f"""
        SELECT kind || ' ' || id || ' (client ' || client_id || ')' FROM (
            SELECT 'connection' AS kind, id, client_id FROM connection
            UNION ALL SELECT 'binding', id, client_id FROM binding
            UNION ALL SELECT 'event', id, client_id FROM event WHERE client_id IS NOT NULL
        )
        WHERE client_id NOT IN (SELECT id FROM client)
            AND (({_EVERY_CLIENT}) OR client_id > (SELECT max(id) FROM client)
                AND NOT EXISTS (SELECT 1 FROM counter WHERE name = 'clients_not_recorded'))
        """,
        "these refer to clients without a row, which cannot have been deleted yet",
        _WELL,
    ),
)
"""All rules except that of the schema, in the order in which they are checked."""


class Report(NamedTuple):
    """The results of all rules."""

    result: Result
    """One row for each rule."""
    rules: int
    """The number of rules."""
    broken: int
    """The number of rules that are violated."""
    skipped: int
    """The number of rules for which the image does not have the data."""


def check(
    image: Image,
    *,
    live: bool,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Report:
    """Check all rules; ``live`` is true for an image of a running daemon, false for a file.

    ``on_progress`` is called after each rule with the share of the rules that are done.
    """
    rows = [_by(image, CHECKS[0], live=live), _schema(image)]
    for number, each in enumerate(CHECKS[1:], 2):
        rows.append(_by(image, each, live=live))
        on_progress(number / len(CHECKS))
    results = Counter(result for _, result, _, _ in rows)
    return Report(Result(COLUMNS, iter(rows), -1), len(rows), results[WRONG], results[SKIPPED])


def _by(image: Image, rule: Check, *, live: bool) -> tuple[Value, ...]:
    parameters: dict[str, Value | str] = {"live": int(live)}
    try:
        ((can_tell,),) = image.execute(f"SELECT {rule.condition}", parameters).rows
        if not can_tell:
            return _row(rule.name, SKIPPED, 0, "the image cannot tell")
        found = [_text(value) for (value,) in image.execute(rule.sql).rows]
    except (QueryError, DatabaseError) as error:
        return _row(rule.name, WRONG, None, f"this cannot be checked: {error}")
    return _judged(rule.name, found, rule.sentence)


def _schema(image: Image) -> tuple[Value, ...]:
    """Compare tables, indexes, triggers and views with those that the migrations create."""
    try:
        rows = [tuple(map(_text, row)) for row in image.execute(SCHEMA).rows]
    except (QueryError, DatabaseError) as error:
        return _row("schema", WRONG, None, f"this cannot be checked: {error}")
    theirs = {(kind, name): sql for kind, name, sql in rows}
    found = [
        f"{kind} {name} is {'not there' if (kind, name) not in theirs else 'another'}"
        for (kind, name), sql in ours().items()
        if theirs.get((kind, name)) != sql
    ]
    found += [f"{kind} {name} is not ours" for kind, name in theirs.keys() - ours().keys()]
    return _judged("schema", sorted(found), "the tables are not as scache makes them")


def _judged(name: str, found: list[str], sentence: str) -> tuple[Value, ...]:
    if not found:
        return _row(name, OK, 0, "")
    named = "; ".join(found[:SHOWN]) + ("; ..." if len(found) > SHOWN else "")
    return _row(name, WRONG, len(found), f"{sentence}: {named}")


def _row(name: str, result: bytes, found: int | None, detail: str) -> tuple[Value, ...]:
    return name.encode(), result, found, detail.encode(errors="surrogateescape")


def _text(value: Value) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return str(value)
