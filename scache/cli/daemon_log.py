"""The log of a running daemon: lines on stderr that nothing can break."""

from __future__ import annotations

import contextlib
import logging
import os
import select

from scache.escape import one_line

STDERR = 2

_MOST_ALIKE = 10
_PERIOD = 10
"""So many warnings of one kind about clients are logged in so many seconds."""

_REMARK = "remark"
"""The attribute of a record that has what `FloodFilter` says of the others like it."""


class LineFormatter(logging.Formatter):
    """``scache[PID]: message``, the level in between unless it is info.

    An exception is told by its type and text; its traceback is for those who
    asked for debug. Of a flood the last word is what `FloodFilter` has to say.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as it goes to stderr, without the final newline."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"scache[{record.process}]: {level}{one_line(record.getMessage())}"
        if remark := getattr(record, _REMARK, ""):
            line += f" ({remark})"
        if not record.exc_info or record.exc_info[1] is None:
            return line
        error = record.exc_info[1]
        line += one_line(f": {type(error).__name__}: {error}")
        if logging.getLogger("scache").isEnabledFor(logging.DEBUG):
            line += "\n" + self.formatException(record.exc_info)
        return line


class FloodFilter(logging.Filter):
    """Keeps clients from filling the disk with what is logged of them.

    Of the warnings from one place in the code a few are let through in each
    period. The last of these says that there may be more, and the first of a
    later period how many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}
        """By place, when its period began, and how many there were since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log it."""
        place, now = (record.pathname, record.lineno), record.created
        began, count = self._seen.get(place, (now, 0))
        if not began <= now < began + _PERIOD:
            if count > _MOST_ALIKE:
                setattr(record, _REMARK, f"{count - _MOST_ALIKE} more like it were not logged")
            began, count = now, 0
        count += 1
        self._seen[place] = began, count
        if count == _MOST_ALIKE:
            setattr(record, _REMARK, f"at most {_MOST_ALIKE} like it are logged in {_PERIOD} s")
        return count <= _MOST_ALIKE


class StderrHandler(logging.Handler):
    """Writes each record with one write(2), so that lines of many processes never mix.

    Nothing is buffered and nothing waits: a stderr that is full, closed or gone
    costs that one line and nothing else, now or at exit.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or lose it."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - a line that cannot be made must not end the daemon
            self.handleError(record)
            return
        with contextlib.suppress(OSError):
            # A pipe that has room at all takes PIPE_BUF bytes without waiting (pipe(7)).
            if select.select([], [STDERR], [], 0)[1]:
                os.write(STDERR, line[-select.PIPE_BUF :])


def start_logging(level: str) -> None:
    """Log to stderr: what scache has to say from ``level`` on, and the warnings of others."""
    occupy_standard_descriptors()
    logging.raiseExceptions = False
    handler = StderrHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("scache").setLevel(level.upper())
    logging.getLogger("scache.clients").addFilter(FloodFilter())


def occupy_standard_descriptors() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed.

    Otherwise a connection that the daemon keeps for somebody might become
    number 2, and be sent the log.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= STDERR:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
