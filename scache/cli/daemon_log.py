"""The log of the daemon: whole lines on stderr, written without waiting."""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from scache.escape import one_line
from scache.settings.values import LogFormat

STDERR = 2

_LIMIT = 10
"""Warnings about clients from one place in the code that are logged in one period."""
_PERIOD = 10
"""Length of a period in seconds."""

_LONGEST = select.PIPE_BUF - len("<0>\n")
"""Characters of a line of JSON that one write without waiting takes."""

_SEVERITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}

_REMARK = "remark"
"""Attribute of a record: the remark of `FloodFilter` about suppressed messages."""


class LineFormatter(logging.Formatter):
    """The format ``scache[PID]: level: message``, without the level if it is info.

    An exception is shown by its type and text, and at the level debug with its traceback. The
    remark of `FloodFilter` stands at the end of the line.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its final newline."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"scache[{record.process}]: {level}{self.text(record)}"

    def text(self, record: logging.LogRecord) -> str:
        """Return the message with its remark and exception."""
        line = one_line(record.getMessage())
        if remark := getattr(record, _REMARK, ""):
            line += f" ({remark})"
        if not record.exc_info or record.exc_info[1] is None:
            return line
        error = record.exc_info[1]
        line += one_line(f": {type(error).__name__}: {error}")
        if logging.getLogger("scache").isEnabledFor(logging.DEBUG):
            line += "\n" + self.formatException(record.exc_info)
        return line


class JournalFormatter(LineFormatter):
    """``<PRIORITY>message``: systemd's journal adds the name, the pid and the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its final newline (sd-daemon(3))."""
        return f"<{syslog_severity(record.levelno)}>{self.text(record)}"


class JsonFormatter(LineFormatter):
    """A JSON object a line: time, level, pid, logger, message, and the values in the message.

    A message that takes its values by name, as in ``%(client_pid)d``, has each of them as a field
    as well. An exception is the field ``error``, and at the level debug also ``traceback``. A line
    that is too long for one write has shorter texts, and stays valid.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its final newline."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, Mapping):
            fields = {name: _plain(value) for name, value in record.args.items()} | fields
        if remark := getattr(record, _REMARK, ""):
            fields["remark"] = remark
        if record.exc_info and (error := record.exc_info[1]) is not None:
            fields["error"] = f"{type(error).__name__}: {error}"
            if logging.getLogger("scache").isEnabledFor(logging.DEBUG):
                fields["traceback"] = self.formatException(record.exc_info)
        return _json_line(fields)


class JournalJsonFormatter(JsonFormatter):
    """``<PRIORITY>`` before the JSON object; systemd's journal removes it (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its final newline."""
        return f"<{syslog_severity(record.levelno)}>{super().format(record)}"


def _plain(value: object) -> object:
    """Return a value that JSON has, or its text."""
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _json_line(fields: dict[str, Any]) -> str:
    """Return the fields as JSON of at most _LONGEST characters; long texts lose their ends."""
    import json

    while len(line := json.dumps(fields)) > _LONGEST:
        longest = max(fields, key=lambda name: len(str(fields[name])))
        text = str(fields[longest])
        fields[longest] = text[: len(text) // 2]
    return line


def syslog_severity(level: int) -> int:
    """Return the severity of a level of `logging` (syslog(3))."""
    return _SEVERITIES.get(level, 6)


def under_journal(environment: Mapping[str, str]) -> bool:
    """Return True if stderr is connected to systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(STDERR)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class FloodFilter(logging.Filter):
    """A limit on the warnings about clients, so that clients cannot fill the disk with them.

    A few warnings from each place in the code are logged in each period. The last of them says
    that further ones are suppressed. The first of a later period says how many were suppressed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}
        """By place: the begin of its period, and the number of warnings in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True to log the record; add a remark to it if warnings are suppressed."""
        place, now = (record.pathname, record.lineno), record.created
        began, count = self._seen.get(place, (now, 0))
        if not began <= now < began + _PERIOD:
            if count > _LIMIT:
                setattr(record, _REMARK, f"{count - _LIMIT} more like it were not logged")
            began, count = now, 0
        count += 1
        self._seen[place] = began, count
        if count == _LIMIT:
            setattr(record, _REMARK, f"at most {_LIMIT} like it are logged in {_PERIOD} s")
        return count <= _LIMIT


class StderrHandler(logging.Handler):
    """A handler that writes each record with one write(2): lines of several processes never mix.

    It has no buffer and never waits. If stderr is full or closed, the line is lost, and the daemon
    goes on.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; drop it if stderr does not take it at once."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - a bug in a message must not end the daemon
            self.handleError(record)
            return
        with contextlib.suppress(OSError):
            # A pipe that is writable takes PIPE_BUF bytes without waiting (pipe(7)).
            if select.select([], [STDERR], [], 0)[1]:
                os.write(STDERR, line[-select.PIPE_BUF :])


def start_logging(level: str, form: LogFormat) -> None:
    """Log messages of scache from this level on, and warnings of libraries, to stderr."""
    occupy_standard_descriptors()
    handler = StderrHandler()
    journal = under_journal(os.environ)
    if form == "json":
        handler.setFormatter(JournalJsonFormatter() if journal else JsonFormatter())
    else:
        handler.setFormatter(JournalFormatter() if journal else LineFormatter())
    log_to(handler, level)


def log_to(handler: logging.Handler, level: str) -> None:
    """Log messages of scache from this level on, and warnings of libraries, to a handler."""
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("scache").setLevel(level.upper())
    clients = logging.getLogger("scache.clients")
    if not clients.filters:
        clients.addFilter(FloodFilter())


def occupy_standard_descriptors() -> None:
    """Open /dev/null in place of stdin, stdout and stderr that are closed.

    Otherwise a cached connection could get the number 2, and the log would be sent to its peer.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= STDERR:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
