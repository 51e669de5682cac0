"""The log of what clients can cause repeatedly."""

from __future__ import annotations

import logging

from scache.unix import memory

client_logger = logging.getLogger("scache.clients")
"""Logger for messages that clients can cause repeatedly; its handler may suppress some of them."""


def out_of_memory() -> None:
    """Release the reserve of memory, and log that there is none; call this after a MemoryError."""
    memory.release()
    client_logger.warning(
        "out of memory: lower max_bytes, or allow the daemon more memory "
        "(ulimit -v, or MemoryMax= in a unit of systemd)"
    )
