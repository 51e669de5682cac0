"""Blocking and async clients of the daemon and of Postfix's scache(8)."""
