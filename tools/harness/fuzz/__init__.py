"""Fuzzing of both halves of the conversation (tools/fuzz)."""
