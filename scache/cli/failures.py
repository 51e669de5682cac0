"""The message and the exit code of an exception that ends a command or a statement."""

from __future__ import annotations

import errno
import os

from scache.errors import EXIT_FAILURE, EXIT_NOT_NOW, ScacheError

_NO_MEMORY = (os.strerror(errno.ENOMEM), "failed to map segment")
"""Parts of the errors of a dynamic linker without memory."""


def explained(error: Exception) -> tuple[str, int]:
    """Return the message for a user, and the exit code, of any exception."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # a task group has wrapped it
    if isinstance(error, ScacheError):
        return str(error), error.exit_code
    if (shortage := _shortage(error)) is not None:
        return shortage, EXIT_NOT_NOW
    text = f": {error}" if str(error) else ""
    return f"unforeseen {type(error).__name__}{text} (please report it)", EXIT_FAILURE


def _shortage(error: Exception) -> str | None:
    """Return what this process is out of, and the remedy; None for another error."""
    if isinstance(error, ImportError) and os.strerror(errno.EMFILE) in str(error):
        error = OSError(errno.EMFILE, str(error))  # from dlopen(3)
    match error:
        case MemoryError() | OSError(errno=errno.ENOMEM):
            return "out of memory"
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return "out of descriptors: raise the limit on open files (ulimit -n)"
        case RuntimeError():
            from scache.unix.process import NO_THREAD, is_no_thread

            return NO_THREAD if is_no_thread(error) else None
        case _:
            return None
