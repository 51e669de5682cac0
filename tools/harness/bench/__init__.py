"""Measures scache against Postfix's own; started by tools/bench."""
