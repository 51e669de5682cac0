"""Clients of the daemon, and of the genuine scache(8): blocking and async."""
