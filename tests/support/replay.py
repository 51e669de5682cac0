"""Clients that send a sequence of requests to a server, and record its replies."""

from __future__ import annotations

import fcntl
import os
import select
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.request_sequences import Step, save_dest
from tests.support.wire import DEADLINE, DUMMY, Wire, encode, message_length

OK = encode([(b"status", b"0")])
EMPTY = b"\0"
"""The message without attributes; the byte that carries a descriptor looks the same."""

Identity = tuple[int, int, int]
"""The identity of an open file: device, inode, and access mode (which end of a pipe it is)."""


def identity_of(descriptor: int) -> Identity:
    """Return the identity of an open file, which is the same for every duplicate."""
    status = os.fstat(descriptor)
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    return status.st_dev, status.st_ino, access


class Outcome(NamedTuple):
    """The replies and descriptors that a server sends for a step."""

    said: bytes
    found: tuple[Identity, ...]

    @property
    def replies(self) -> list[bytes]:
        """The replies, without the messages of the base protocol that pass descriptors."""
        messages, said = [], self.said
        while said:
            length = message_length(said)
            assert length is not None, f"half a message: {said!r}"
            messages.append(said[:length])
            said = said[length:]
        return [message for message in messages if message not in (DUMMY, EMPTY)]


class Supply:
    """A source of descriptors to save. It keeps the other end of each until it is found."""

    def __init__(self) -> None:
        self._kinds = cycle(("file", "socket", "reading", "writing"))
        self._peers: dict[Identity, int] = {}

    def close(self) -> None:
        """Close the other ends."""
        for peer in self._peers.values():
            os.close(peer)
        self._peers.clear()

    @contextmanager
    def for_step(self, step: Step) -> Iterator[int | None]:
        """Yield a new descriptor if the step saves one, else None; close it afterwards."""
        if not step.with_descriptor or b"save_endp" not in b"".join(step.pieces):
            yield None
            return
        kind = next(self._kinds)
        if kind == "file":
            descriptor = os.memfd_create("saved")
        else:
            if kind == "socket":
                one, other = socket.socketpair()
                descriptor, peer = one.detach(), other.detach()
            else:
                descriptor, peer = os.pipe() if kind == "reading" else reversed(os.pipe())
            self._peers[identity_of(descriptor)] = peer
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def found(self, identities: Iterable[Identity]) -> None:
        """Close the other ends of these."""
        for identity in identities:
            if identity in self._peers:
                os.close(self._peers.pop(identity))


class Player:
    """A client in the base protocol.

    A second client shows when the server has served the first one. It sends a request after the
    server has read all bytes of the first client, and waits for the reply. It does so twice,
    because a server that polls both clients may find both ready and serve the second one first.
    """

    _ASKED_BY_OTHER = encode(save_dest(b"other", b"", b"other"))

    def __init__(self, path: Path, timeout: float = DEADLINE) -> None:
        self._timeout = timeout
        with ExitStack() as cleanup:
            self.client = cleanup.enter_context(Wire(path, timeout))
            self._other = cleanup.enter_context(Wire(path, timeout))
            self.greetings = self.client.announcement(), self._other.announcement()
            self._cleanup = cleanup.pop_all()
        self._owed = b""
        self._other_waits = False
        self._unread = b""
        self._descriptor_due = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def play(self, step: Step, descriptor: int | None) -> Outcome:
        """Carry out a step until the server waits for the next one.

        ``descriptor`` is sent if the server requests one.
        """
        owed, self._owed = self._owed, b""
        for piece in (owed + step.pieces[0], *step.pieces[1:]):
            self.client.send(piece)
        return self._listen(step, descriptor)

    def _listen(self, step: Step, descriptor: int | None) -> Outcome:
        said = b""
        found: list[Identity] = []
        served = -1 if self._other_waits else 0
        while (served < 2 or self._ready(0)) and not self._owed:
            if not self._other_waits:
                self._other.send(self._ASKED_BY_OTHER)
                self._other_waits = True
            ready = self._ready(self._timeout)
            assert ready, f"no answer, having said {said!r}"
            if self.client not in ready:
                assert self._other.receive_message_bytes() == OK
                self._other_waits = False
                served = served + 1 if self.client.all_read() else 0
                continue
            data, descriptors = self.client.receive_raw()
            assert data, f"hung up, having said {said!r}"
            said += data
            for each in descriptors:
                found.append(identity_of(each))
                os.close(each)
            if self._respond(data, step, descriptor):
                served = -1
        return Outcome(said, tuple(found))

    def _ready(self, timeout: float) -> list[Wire]:
        return select.select([self.client, self._other], [], [], timeout)[0]

    def _respond(self, data: bytes, step: Step, descriptor: int | None) -> bool:
        """Send what the exchange expects of the client; return True if that was anything."""
        self._unread += data
        responded = False
        while self._unread:
            length = 1 if self._descriptor_due else message_length(self._unread)
            if length is None:
                break
            message, self._unread = self._unread[:length], self._unread[length:]
            if self._descriptor_due:
                self._descriptor_due = False
                if step.glued:
                    self._owed = DUMMY
                else:
                    self.client.send(DUMMY)
            elif message == DUMMY:
                self.client.send(step.answer, [] if descriptor is None else [descriptor])
            elif message.startswith(b"status\x000\0property\0"):
                self.client.send(DUMMY)
                self._descriptor_due = True
            else:
                continue
            responded = True
        return responded


class InlinePlayer(Player):
    """A client in inline mode."""

    def __init__(self, path: Path, timeout: float = DEADLINE) -> None:
        super().__init__(path, timeout)
        try:
            self.client.send(encode([(b"request", b"hello")]))
            assert self.client.receive_message()[0] == (b"status", b"0")
        except BaseException:
            self._cleanup.close()
            raise

    def play(self, step: Step, descriptor: int | None) -> Outcome:
        """Carry out a step; the descriptor is sent with its first byte."""
        descriptors = [] if descriptor is None else [descriptor]
        for piece in filter(None, step.pieces):
            self.client.send(piece, descriptors)
            descriptors = []
        return self._listen(step, descriptor)

    def play_ahead(self, steps: Sequence[Step], descriptors: Sequence[int]) -> Outcome:
        """Send the requests of all steps ahead of the replies; return the outcome of all."""
        self.client.send(b"".join(b"".join(step.pieces) for step in steps), descriptors)
        return self._listen(steps[-1], None)

    def _respond(self, *_: object) -> bool:
        return False
