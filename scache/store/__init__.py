"""The database: opening and recovering it, its live rows and its audit log."""

from scache.store.audit import AuditLog
from scache.store.batch import COMMIT_INTERVAL, FAULT_RETRY_INTERVAL
from scache.store.database import MEMORY, Database, open_database
from scache.store.live_rows import Binding, Gone, LiveRows
from scache.store.recovery import Start
from scache.store.serialized import CLIENTS_SERVED, FAULT, LOG_BYTES, complete, load

__all__ = [
    "CLIENTS_SERVED",
    "COMMIT_INTERVAL",
    "FAULT",
    "FAULT_RETRY_INTERVAL",
    "LOG_BYTES",
    "MEMORY",
    "AuditLog",
    "Binding",
    "Database",
    "Gone",
    "LiveRows",
    "Start",
    "complete",
    "load",
    "open_database",
]
