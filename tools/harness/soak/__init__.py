"""The soak: many clients, good and hostile, for long, and the books checked (tools/soak)."""
