"""Clients of the daemon, and of the genuine scache(8)."""

from scache.client.blocking import Client
from scache.client.found import Found

__all__ = ["Client", "Found"]
