"""The cache: the four operations of scache(8), expiry and statistics."""

from scache.cache.cache import Cache
from scache.cache.statistics import Statistics

__all__ = ["Cache", "Statistics"]
