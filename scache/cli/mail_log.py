"""The log of Postfix: lines for postlogd(8), or for syslog with the facility mail."""

from __future__ import annotations

import _thread
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from scache.cli.daemon_log import LineFormatter, syslog_severity

SYSLOG = "/dev/log"

_QUEUE = 200
"""Lines that are kept while the receiver takes none; the oldest are dropped."""

_MAX_SIZE = 4000
"""Bytes of one line; the rest is cut off."""

_RETRY_INTERVAL = 0.1
"""Seconds after which lines are sent again that the receiver did not take."""

_DRAIN_TIMEOUT = 0.2
"""Seconds at exit in which the receiver may take the lines that are kept."""

_FACILITIES = {
    "kern": 0,
    "user": 1,
    "mail": 2,
    "daemon": 3,
    "auth": 4,
    "syslog": 5,
    "lpr": 6,
    "news": 7,
    "uucp": 8,
    "cron": 9,
    "authpriv": 10,
    "ftp": 11,
    **{f"local{number}": 16 + number for number in range(8)},
}
"""Numbers of the facilities (syslog(3), RFC 5424)."""


class MailLogHandler(logging.Handler):
    """A sender of log lines to a datagram socket, which never waits.

    postlogd(8) and syslog take few lines at once (net.unix.max_dgram_qlen, 10 by default), so
    further ones are kept and sent a moment later, with the next line, or by `drain`.
    """

    def __init__(self, address: str, prefix: str, tag: str, facility: str | None) -> None:
        """Send to this address.

        Each line begins with its time, with ``prefix`` and ``tag``. ``facility`` is for syslog,
        which expects a priority before the time; postlogd(8) does not.
        """
        super().__init__()
        self._formatter = LineFormatter()
        self._address = address
        self._prefix, self._tag = prefix, tag
        self._facility = None if facility is None else _FACILITIES.get(facility, 2)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._lines: deque[bytes] = deque(maxlen=_QUEUE)
        self._retry_at = -math.inf
        """When a thread sends the lines that are kept (time.monotonic); past if there is none."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, or keep it until the receiver takes it."""
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - a line that cannot be made must not end the daemon
            self.handleError(record)
            return
        self._lines.append(line.encode(errors="backslashreplace")[:_MAX_SIZE])
        self._send_soon()

    def drain(self) -> None:
        """Send the lines that are kept; give up after _DRAIN_TIMEOUT seconds."""
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        with self._locked():
            while self._lines and self._send() and time.monotonic() < deadline:
                time.sleep(0.005)

    def close(self) -> None:
        """Close the socket; lines that are kept are lost."""
        with self._locked():
            self._socket.close()
        super().close()

    def _send_soon(self) -> None:
        """Send what the receiver takes now, and the rest _RETRY_INTERVAL seconds later.

        If no thread can be started for that, the next line sends the rest.
        """
        if self._send() and self._lines and time.monotonic() >= self._retry_at:
            with suppress(RuntimeError):
                # threading.Thread.start() would wait for the new thread to get a processor.
                _thread.start_new_thread(self._send_again, ())
                self._retry_at = time.monotonic() + _RETRY_INTERVAL

    def _send_again(self) -> None:
        time.sleep(_RETRY_INTERVAL)
        with self._locked():
            self._retry_at = -math.inf
            self._send_soon()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _line(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = level + self._formatter.text(record)
        date = time.strftime("%b %e %H:%M:%S", time.localtime(record.created))
        line = f"{date} {self._prefix}{self._tag}[{os.getpid()}]: {text}"
        if self._facility is None:
            return line
        return f"<{self._facility * 8 + syslog_severity(record.levelno)}>{line}"

    def _send(self) -> bool:
        """Send what the receiver takes; return True if it may take more soon."""
        while self._lines:
            try:
                self._socket.sendto(self._lines[0], self._address)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._lines.popleft()
        return True


def drain() -> None:
    """Send what the handlers in use have kept."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, MailLogHandler):
            handler.drain()


def mail_log(environment: Mapping[str, str], name: str, facility: str = "mail") -> MailLogHandler:
    """Return a handler that logs where the other programs of this Postfix log.

    ``name`` is the parameter syslog_name. master(8) names postlogd(8) in POSTLOG_SERVICE if the
    parameter maillog_file is set (postlogd(8)).
    """
    logging.addLevelName(logging.CRITICAL, "FATAL")  # as the programs of Postfix call it
    tag = f"{name}/scache"
    if service := environment.get("POSTLOG_SERVICE"):
        host = environment.get("POSTLOG_HOSTNAME") or _host_name()
        return MailLogHandler(service, f"{host} ", tag, None)
    return MailLogHandler(SYSLOG, "", tag, facility)


def _host_name() -> str:
    with suppress(OSError):
        return socket.gethostname()
    return "localhost"
