"""A client process that makes random requests, keeps a diary of them, and dies at a random moment.

Run it with ``python -m tests.support.dying_client SOCKET LOG SEED SECONDS``. Each descriptor that
it saves carries a token, by which its finder can identify it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from tests.support.wire import DEADLINE, DESCRIPTOR_BYTE, DUMMY, Wire, decode, encode

ENDPOINTS = (b"e0", b"e1", b"e2", b"never found")
DESTINATIONS = (b"d0", b"d1", b"d2")
SAVE, BIND, FIND, LOOK, SPOIL = "save_endp", "save_dest", "find_endp", "find_dest", "bad"
KINDS = (SAVE, BIND, FIND, LOOK, SPOIL)
WEIGHTS = (44, 8, 20, 20, 3)

KEPT_ENDS = 100
"""Far ends of saved connections that a process keeps open."""


class Sent(NamedTuple):
    """A request on one wire of a process; only the last on its wire may be incomplete."""

    wire: int
    kind: str
    label: str
    token: str
    """The token of the descriptor that is saved; empty if there is none."""
    ttl: int


class Got(NamedTuple):
    """A descriptor that a find returned."""

    wire: int
    token: str
    """The token in the descriptor."""
    properties: str
    """The properties in the reply, which are the same token."""
    kind: str
    label: str


class Replied(NamedTuple):
    """The reply to a request that was read."""

    wire: int
    kind: str
    label: str
    status: int


class Diary:
    """The diary of one process."""

    def __init__(self, path: Path) -> None:
        self.pid = int(path.suffix[1:])
        self.wires = 0
        self.ended: set[int] = set()
        """Wires on which every reply was read."""
        self.sent: list[Sent] = []
        self.got: list[Got] = []
        self.replied: list[Replied] = []
        for line in path.read_text().splitlines():
            what, *fields = json.loads(line)
            match what:
                case "open":
                    self.wires += 1
                case "sent":
                    self.sent.append(Sent(*fields))
                case "got":
                    self.got.append(Got(*fields))
                case "replied":
                    self.replied.append(Replied(*fields))
                case "ended":
                    self.ended.add(*fields)


class DiesError(Exception):
    """The client disconnects in the middle of an exchange."""


class DyingClient:
    """A client process, which uses one wire at a time."""

    def __init__(self, path: str, log: str, seed: int) -> None:
        self._path = path
        self._log = os.open(
            f"{log}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        )
        self._random = random.Random(seed)
        self._tokens = self._wires = 0
        self._ends: deque[socket.socket] = deque()
        self._wire: Wire
        self._inline = False

    def run(self, seconds: float) -> None:
        """Make requests on one wire after the other."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._inline = self._random.random() < 0.5
            try:
                self._run_once()
            except DiesError:
                if self._random.random() < 0.03:
                    os.kill(os.getpid(), signal.SIGKILL)
            except (OSError, EOFError):  # the daemon itself was killed
                return

    def _write(self, what: str, *fields: object) -> None:
        os.write(self._log, json.dumps([what, *fields]).encode() + b"\n")

    def _run_once(self) -> None:
        with Wire(self._path, timeout=DEADLINE) as self._wire:
            self._write("open")
            self._wires += 1
            self._wire.announcement()
            if self._inline:
                self._wire.send(encode([(b"request", b"hello")]))
                self._wire.receive_message()
            for _ in range(self._random.randrange(30)):
                if self._inline:
                    self._several()
                else:
                    self._one()
            self._write("ended", self._wires)

    def _may_die(self, chance: float = 0.02) -> None:
        if self._random.random() < chance:
            raise DiesError

    def _request(self) -> tuple[Sent, bytes, int | None]:
        """Return a request to make, its message, and the descriptor to save."""
        choose = self._random
        (kind,) = choose.choices(KINDS, WEIGHTS)
        endpoint = choose.choice(ENDPOINTS if kind == SAVE else ENDPOINTS[:-1])
        destination = choose.choice(DESTINATIONS)
        label = destination if kind in (BIND, LOOK) else endpoint
        ttl = choose.choice((1, 1, 2, 60))
        token, descriptor = "", None
        attributes = [(b"request", kind.encode())]
        if kind == SAVE and choose.random() < 0.95:
            self._tokens += 1
            token = f"{os.getpid()}-{self._tokens}"
            descriptor = self._connection(token.encode())
        if kind in (SAVE, BIND):
            attributes.append((b"ttl", b"%d" % ttl))
        attributes.append((b"label", label))
        if kind in (SAVE, BIND):
            attributes.append((b"property", token.encode() or b"q"))
        if kind == BIND:
            attributes.append((b"label", endpoint))
        if kind == SPOIL:
            attributes = [(b"request", FIND.encode()), (b"wrong", b"x")]
        return (
            Sent(self._wires, kind, label.decode(), token, ttl),
            encode(attributes),
            descriptor,
        )

    def _connection(self, token: bytes) -> int:
        """Return a descriptor that carries a token."""
        if self._random.random() < 0.5:
            descriptor = os.memfd_create("token")
            os.write(descriptor, token)
            return descriptor
        ours, theirs = socket.socketpair()
        ours.sendall(token)
        self._ends.append(ours)
        if len(self._ends) > KEPT_ENDS:
            self._ends.popleft().close()
        return theirs.detach()

    def _one(self) -> None:
        """Run one exchange of the base protocol, perhaps not to its end."""
        sent, message, descriptor = self._request()
        try:
            if self._random.random() < 0.02:
                self._wire.send(message[: self._random.randrange(len(message))])
                raise DiesError
            self._write("sent", *sent)
            if sent.kind in (FIND, LOOK) and self._random.random() < 0.05:
                self._wire.send(message + DUMMY * self._random.choice((1, 2)))
                raise DiesError  # everything is sent at once, and nothing is read
            self._wire.send(message)
            self._may_die()
            reply = self._wire.receive_message_bytes()
            if reply == DUMMY:
                self._may_die()
                self._wire.send(DESCRIPTOR_BYTE, () if descriptor is None else (descriptor,))
                self._may_die()
                reply = self._wire.receive_message_bytes()
            self._take(sent, reply)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _several(self) -> None:
        """Send a few requests in inline mode at once, and read all replies or some."""
        requests = [self._request() for _ in range(self._random.choice((1, 1, 4, 10)))]
        descriptors = [descriptor for _, _, descriptor in requests if descriptor is not None]
        try:
            # A save without a descriptor would take that of the next save.
            lacking = any(sent.kind == SAVE and not sent.token for sent, _, _ in requests)
            groups = [[each] for each in requests] if lacking else [requests]
            for group in groups:
                message = b"".join(message for _, message, _ in group)
                carried = [descriptor for _, _, descriptor in group if descriptor is not None]
                whole = self._random.random() > 0.02
                for sent, _, _ in group:
                    self._write("sent", *sent)
                cut = len(message) if whole else self._random.randrange(len(message))
                if cut:
                    self._wire.send(message[:cut], carried)
                if not whole:
                    raise DiesError
                self._may_die()
                for sent, _, _ in group:
                    self._take(sent, self._wire.receive_message_bytes())
                    self._may_die(0.01)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take(self, sent: Sent, reply: bytes) -> None:
        """Process the reply to a request, and read its descriptor."""
        (_, status), *properties = decode(reply)
        if sent.kind in (FIND, LOOK) and status == b"0":
            if not self._inline:
                self._may_die(0.05)
                self._wire.send(DUMMY)
                self._may_die(0.05)
                descriptor = self._wire.receive_descriptor()
            else:
                descriptor = self._wire.take_descriptor()
            self._write(
                "got",
                self._wires,
                _token(descriptor),
                properties[-1][1].decode(),
                sent.kind,
                sent.label,
            )
            if not self._inline:
                self._may_die(0.05)
                self._wire.send(DUMMY)
        self._write("replied", self._wires, sent.kind, sent.label, int(status))


def _token(descriptor: int) -> str:
    """Return the token of a descriptor, and close it."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return os.pread(descriptor, 100, 0).decode()
        with socket.socket(fileno=os.dup(descriptor)) as found:
            return found.recv(100, socket.MSG_DONTWAIT).decode()
    except BlockingIOError:
        return "another process has read it"
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    _, path, log, seed, seconds = sys.argv
    DyingClient(path, log, int(seed)).run(float(seconds))
