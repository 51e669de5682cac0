"""The four operations: rows joined with descriptors, expiry, and what is counted."""

from scache.cache.cache import Cache
from scache.cache.statistics import Statistics

__all__ = ["Cache", "Statistics"]
