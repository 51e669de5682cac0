"""The kinds of requests and events in the tables, and the names of the counters."""

from __future__ import annotations

from typing import Final

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
WAYS_OUT: Final = ("found", "expired", "evicted", "hung_up", "purged", "lost")
BINDING_WAYS_OUT: Final = ("expired", "evicted", "purged")
KINDS: Final = (*REQUESTS, *WAYS_OUT, "put_back")
"""The values of the column ``kind`` of the table ``event``."""

COUNTERS: Final = (
    *(f"{kind}_{outcome}" for kind in REQUESTS for outcome in ("ok", "fail", "bad")),
    *(f"connections_{way}" for way in WAYS_OUT),
    *(f"bindings_{way}" for way in BINDING_WAYS_OUT),
    "connections_not_watched",
    "connections_not_sent",
    "clients_connected",
    "clients_not_recorded",
    "clients_not_allowed",
    "events_trimmed",
    "events_dropped",
    "runs_not_recorded",
    "closes_stuck",
    "limit_clients",
    "limit_connections_per_endpoint",
    "limit_bindings",
    "limit_bindings_per_destination",
    "limit_message_size",
    "limit_ahead_size",
    "limit_exchange_timeout",
    "limit_open_files",
)
"""The names of all counters. The table ``counter`` may have no row for a counter that is 0."""
