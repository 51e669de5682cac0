"""tools/soak: many clients, good and hostile, over a long time."""
