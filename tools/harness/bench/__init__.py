"""tools/bench: the daemon compared with Postfix's scache(8)."""
