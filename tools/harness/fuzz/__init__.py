"""tools/fuzz: fuzzing of both halves of the protocol."""
