"""The text of errors in messages."""

from __future__ import annotations

import errno

import pytest

from scache.errors import reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EMFILE, "Too many open files", "name"), "Too many open files"),
        (OSError("of one argument"), "of one argument"),
        (OSError(), "OSError"),
        (TimeoutError(), "timed out"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
        (MemoryError(), "out of memory"),
        (AssertionError(), "AssertionError"),
        (ValueError("of one argument"), "of one argument"),
    ],
)
def test_reason_of_an_error_is_never_empty(error: Exception, reason: str) -> None:
    """An exception may have no text."""
    assert reason_of(error) == reason
