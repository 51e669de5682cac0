"""The kinds of requests and events in the tables, and the names of the counters."""

from __future__ import annotations

from typing import Final, Literal, get_args

REQUESTS: Final = (
    "save_endp",
    "find_endp",
    "save_dest",
    "find_dest",
    "snapshot",
    "purge_endp",
    "purge_dest",
    "purge_id",
    "unknown",
)
OUTCOMES: Final = ("ok", "fail", "bad")
WAYS_OUT: Final = ("found", "expired", "evicted", "hung_up", "purged", "lost")
BINDING_WAYS_OUT: Final = ("expired", "evicted", "purged")
KINDS: Final = (*REQUESTS, *WAYS_OUT, "put_back")
"""The values of the column ``kind`` of the table ``event``."""

MissReason = Literal[
    "none_left",
    "expired",
    "hung_up",
    "purged",
    "limit",
    "refused",
    "fault",
    "unknown",
]
MISS_REASONS: Final[tuple[MissReason, ...]] = get_args(MissReason)
"""Why a find missed. Its event begins with this word in the column ``detail``."""

Limit = Literal[
    "clients",
    "connections_per_endpoint",
    "bindings",
    "bindings_per_destination",
    "bytes",
    "message_size",
    "ahead_size",
    "exchange_timeout",
    "open_files",
]

# The names of the counters: of each request and outcome, close reason, reason of a miss, limit.
REQUEST_COUNTERS: Final = {
    (kind, outcome): f"{kind}_{outcome}" for kind in REQUESTS for outcome in OUTCOMES
}
CONNECTION_COUNTERS: Final = {way: f"connections_{way}" for way in WAYS_OUT}
BINDING_COUNTERS: Final = {way: f"bindings_{way}" for way in BINDING_WAYS_OUT}
MISS_COUNTERS: Final[dict[MissReason, str]] = {
    reason: f"find_misses_{reason}" for reason in MISS_REASONS
}
LIMIT_COUNTERS: Final[dict[Limit, str]] = {limit: f"limit_{limit}" for limit in get_args(Limit)}

FINDS_CONTINUED: Final = "finds_continued"
CONNECTIONS_NOT_WATCHED: Final = "connections_not_watched"
CONNECTIONS_NOT_SENT: Final = "connections_not_sent"
CLIENTS_CONNECTED: Final = "clients_connected"
CLIENTS_NOT_RECORDED: Final = "clients_not_recorded"
CLIENTS_NOT_ALLOWED: Final = "clients_not_allowed"
EVENTS_TRIMMED: Final = "events_trimmed"
EVENTS_DROPPED: Final = "events_dropped"
RUNS_NOT_RECORDED: Final = "runs_not_recorded"
CLOSES_STUCK: Final = "closes_stuck"

COUNTERS: Final = (
    *REQUEST_COUNTERS.values(),
    *CONNECTION_COUNTERS.values(),
    *BINDING_COUNTERS.values(),
    *MISS_COUNTERS.values(),
    FINDS_CONTINUED,
    CONNECTIONS_NOT_WATCHED,
    CONNECTIONS_NOT_SENT,
    CLIENTS_CONNECTED,
    CLIENTS_NOT_RECORDED,
    CLIENTS_NOT_ALLOWED,
    EVENTS_TRIMMED,
    EVENTS_DROPPED,
    RUNS_NOT_RECORDED,
    CLOSES_STUCK,
    *LIMIT_COUNTERS.values(),
)
"""The names of all counters. The table ``counter`` may have no row for a counter that is 0."""
