"""The followers of the audit log: observers that get a message for each event."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter

import anyio
import anyio.lowlevel

from scache.daemon.auto_reset_event import AutoResetEvent
from scache.daemon.client_log import client_logger
from scache.daemon.transport import Transport
from scache.model import AuditEvent, Peer
from scache.protocol.messages import Follow
from scache.protocol.observation import encode_client, encode_event, encode_missed
from scache.store.audit import AuditLog
from scache.vocabulary import KINDS

TICK = 0.05
"""Seconds between two times at which events are sent."""

MAX_BACKLOG = 2**20
"""Most bytes that wait for one follower to read. Further events are counted as missed."""

PATIENCE = 5.0
"""Seconds after which a follower is disconnected that misses events and reads nothing."""

MAX_PATTERN = 4096
"""Most bytes of a pattern, because compiling a long one would hold up other clients."""

_SLICE = 256
"""Events that are sent before other clients are served again."""

_BY_TIME = itemgetter(0)


class Filter:
    """The events that a follower wants."""

    def __init__(self, request: Follow) -> None:
        """Compile the fields of a request; raise ValueError with the reason to refuse it."""
        kind = request.kind.decode(errors="backslashreplace")
        if kind and kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r} of events")
        if request.status not in (b"", b"0", b"1", b"2"):
            raise ValueError("the status must be 0, 1, 2 or empty")
        if max(len(request.endpoint), len(request.destination)) > MAX_PATTERN:
            raise ValueError(f"a pattern has at most {MAX_PATTERN} bytes")
        self._kind = kind
        self._status = int(request.status) if request.status else None
        self._endpoint = _compiled(request.endpoint)
        self._destination = _compiled(request.destination)

    def passes(self, event: AuditEvent) -> bool:
        """Return True if the follower wants this event."""
        return (
            (not self._kind or event.kind == self._kind)
            and (self._status is None or event.status == self._status)
            and (self._endpoint is None or _fits(self._endpoint, event.endpoint))
            and (self._destination is None or _fits(self._destination, event.destination))
        )


class Follower:
    """One follower, and what it has missed."""

    def __init__(self, transport: Transport, peer: Peer, drop: Callable[[], None]) -> None:
        """Send to this client; ``drop`` disconnects it."""
        self._transport = transport
        self._peer = peer
        self._drop = drop
        self._missed = 0
        """Events that were not sent, and of which the follower does not know yet."""
        self._unsent = 0
        """Bytes that waited at the last `look`."""
        self._idle_ticks = 0
        """Calls of `look` since the follower, which misses events, has read something."""

    def send(self, messages: bytes, events: int) -> None:
        """Send the messages of this number of events, or count them as missed."""
        self._tell()
        if self._missed or self._transport.unsent_size + len(messages) > MAX_BACKLOG:
            self._missed += events
        else:
            self._transport.send(messages)

    def look(self) -> None:
        """Tell what was missed if there is room again; disconnect a follower that stopped reading.

        Call this every TICK seconds. A pause of the process of any length counts as one of them.
        """
        self._tell()
        unsent = self._transport.unsent_size
        self._idle_ticks = self._idle_ticks + 1 if self._missed and unsent == self._unsent else 0
        self._unsent = unsent
        if self._idle_ticks * TICK > PATIENCE:
            client_logger.warning(
                "follower with process id %d does not read its events: disconnected (missed: %d)",
                self._peer.pid,
                self._missed,
            )
            self._drop()

    def _tell(self) -> None:
        if self._missed and self._transport.unsent_size <= MAX_BACKLOG // 2:
            missed, self._missed = self._missed, 0
            self._transport.send(encode_missed(missed))


class Followers:
    """All followers. Events are selected and encoded once for those with equal requests."""

    def __init__(self, audit_log: AuditLog) -> None:
        self._audit_log = audit_log
        self._groups: dict[Follow, tuple[Filter, set[Follower]]] = {}
        self._joined = AutoResetEvent()
        self._peers: dict[int, Peer] = {}
        """The peers of the clients, by client id. Events know the id only."""
        self._encoded: dict[int, bytes] = {}
        """The attributes of clients that had events."""
        self._left: list[int] = []
        """Clients that have disconnected, but may have events that are not sent yet."""

    def client_connected(self, client_id: int, peer: Peer) -> None:
        """Remember the peer of a client, because events have its id only."""
        self._peers[client_id] = peer

    def client_disconnected(self, client_id: int) -> None:
        """Forget a client, once its events are sent."""
        if self._groups:
            self._left.append(client_id)
        else:
            self._forget(client_id)

    def add(self, request: Follow, follower: Follower) -> None:
        """Send events from now on. Raises ValueError with the reason to refuse the request."""
        group = self._groups.get(request)
        if group is None:
            group = Filter(request), set[Follower]()
        if not self._groups:
            self._audit_log.events.follow(wanted=True)
            self._joined.set()
        self._groups[request] = group
        group[1].add(follower)

    def remove(self, follower: Follower) -> None:
        """Forget a follower that has disconnected."""
        for request, (_, members) in list(self._groups.items()):
            members.discard(follower)
            if not members:
                del self._groups[request]
        if not self._groups:
            self._audit_log.events.follow(wanted=False)
            self._forget_left()

    async def run(self) -> None:
        """Send the events at each tick; never return."""
        while True:
            if not self._groups:
                await self._joined.wait()
            await anyio.sleep(TICK)
            while self.send(_SLICE):
                await anyio.lowlevel.checkpoint()
            for _, members in list(self._groups.values()):
                for follower in list(members):
                    follower.look()

    def send(self, limit: int | None = None) -> bool:
        """Send up to ``limit`` recorded events, all without it; return True if there are more.

        They are sent in the order of time.
        """
        if not self._groups:
            return False
        events, more = self._audit_log.events.take_followed(limit)
        events.sort(key=_BY_TIME)
        for wanted, members in list(self._groups.values()):
            messages = [self._encode(event) for event in events if wanted.passes(event)]
            if messages:
                data = b"".join(messages)
                for follower in list(members):
                    follower.send(data, len(messages))
        if not more:
            self._forget_left()
        return more

    def _encode(self, event: AuditEvent) -> bytes:
        client_id = event.client_id
        if client_id is None:
            return encode_event(event, b"")
        client = self._encoded.get(client_id)
        if client is None:
            client = encode_client(client_id, self._peers.get(client_id))
            self._encoded[client_id] = client
        return encode_event(event, client)

    def _forget_left(self) -> None:
        for client_id in self._left:
            self._forget(client_id)
        self._left.clear()

    def _forget(self, client_id: int) -> None:
        self._peers.pop(client_id, None)
        self._encoded.pop(client_id, None)


def _fits(pattern: re.Pattern[str], label: bytes | None) -> bool:
    return label is not None and pattern.fullmatch(_text(label)) is not None


def _text(label: bytes) -> str:
    return label.decode(errors="surrogateescape")


def _compiled(pattern: bytes) -> re.Pattern[str] | None:
    r"""Compile a pattern of SQLite's GLOB; return None for an empty one.

    Time is linear in the length of a label, because ``*`` never takes back what it has matched:
    the shortest text up to the first match of what follows is always right.
    """
    if not pattern:
        return None
    first, *others = _pieces(_text(pattern))
    expression = first
    if others:
        *middle, last = others
        expression += "".join(f"(?>.*?{each})" for each in middle) + f".*{last}"
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise ValueError(f"a pattern is not one of GLOB ({error})") from error


def _pieces(pattern: str) -> list[str]:
    """Return regular expressions for what is between the asterisks of a pattern."""
    pieces, at = [""], 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        match character:
            case "*":
                pieces.append("")
            case "?":
                pieces[-1] += "."
            case "[":
                begin = at + (pattern[at : at + 1] == "^")
                end = pattern.find("]", begin + 1)  # a bracket that comes first is in the set
                if end < 0:
                    pieces[-1] += "(?!)"  # SQLite: without an end, nothing matches
                    break
                members = re.sub(r"([\\\[\]^&~|])", r"\\\1", pattern[begin:end])
                pieces[-1] += f"[{'^' * (begin > at)}{members}]"
                at = end + 1
            case _:
                pieces[-1] += re.escape(character)
    return pieces
