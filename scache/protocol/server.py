"""The server's side of the conversation, sans-IO: bytes and descriptors in, events out.

The caller owns the socket, the clock and the cache. It passes received data to
`ServerConversation.receive`, takes events from `next_event` until that returns NEED_DATA, answers
each request before it takes the next event, and sends the result of `data_to_send`.

    state       expected from the client        next
    ----------  ------------------------------  -------------------------------------
    IDLE        a request                       IDLE, DESCRIPTOR (save_endp),
                                                DUMMY (a find that hit)
    DESCRIPTOR  one byte with a descriptor      IDLE
    DUMMY       ``dummy``, to get a descriptor  RECEIPT
    RECEIPT     ``dummy``, having got it        IDLE

After ``hello`` a client is in inline mode, and its state stays IDLE. The message of a ``save_endp``
carries the descriptor, the reply to a find that hits carries the descriptor, and there are no
dummies.

A message has at most one reply. Three things differ from Postfix's scache(8) on purpose:

- A descriptor that arrives together with its ``save_endp`` is accepted.
- Requests that are sent ahead are kept and answered in order.
- A found connection is put back if the client does not take its descriptor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto

from scache.errors import ProtocolError
from scache.model import Status
from scache.protocol.codec import MAX_MESSAGE_SIZE, NEED_DATA, NeedData, encode
from scache.protocol.messages import (
    ANNOUNCEMENT,
    CARRIERS,
    DESCRIPTOR_BYTE,
    DUMMY,
    EMPTY_REPLY,
    GRAMMAR,
    HELLO_REPLY,
    HELLO_REPLY_WITH_FEATURES,
    NAMES,
    PURGED_NAMES,
    REFUSAL_NAMES,
    SHORTAGE,
    SHORTAGE_NAMES,
    STATS_NAMES,
    STATUS_REPLY,
    FindDest,
    FindEndp,
    Hello,
    Ping,
    Request,
    SaveDest,
    SaveEndp,
    encode_reply,
)
from scache.protocol.request_parser import REQUEST, Malformed, RequestParser
from scache.protocol.server_events import Abandoned, Deliver, Delivered, Event, Pinged, Save


class _State(Enum):
    IDLE = auto()
    DESCRIPTOR = auto()
    DUMMY = auto()
    RECEIPT = auto()


# Global names are faster than members of the enumeration, which the metaclass looks up.
_IDLE, _AWAIT_DESCRIPTOR, _AWAIT_DUMMY, _AWAIT_RECEIPT = _State

_FIND_OR_BIND = (FindEndp, FindDest, SaveDest)

_DELIVER, _DELIVERED, _ABANDONED = Deliver(), Delivered(), Abandoned()

MAX_DESCRIPTORS_AHEAD = 253
"""Most descriptors that may wait for the rest of their messages, the limit of one sendmsg(2)."""

MAX_AHEAD_SIZE = 4 * MAX_MESSAGE_SIZE
"""Most bytes of requests that a client may send ahead while the server waits for its dummy."""


class ServerConversation:
    """The conversation with one client, in the base protocol of scache(8) or in inline mode."""

    def __init__(
        self,
        *,
        announce: bool = True,
        not_offered: str | None = None,
        max_message_size: int = MAX_MESSAGE_SIZE,
        max_ahead_size: int = MAX_AHEAD_SIZE,
    ) -> None:
        """Set the limits of one request and of the requests sent ahead of a dummy, in bytes.

        With ``not_offered`` the extensions are disabled: ``hello`` is malformed, and a client that
        understands the reason gets this one.
        """
        self._not_offered = not_offered
        self._max_ahead_size = max_ahead_size
        self.inline = False
        """True if the client has requested inline mode."""
        self._takes_shortage = False
        """True if the client understands the attribute ``shortage``."""
        self._state = _IDLE
        self._parser = RequestParser(max_message_size)
        self.descriptors: deque[int] = deque()
        """Received descriptors that were not passed on yet."""
        self._held: deque[Request | Malformed] = deque()
        self._held_size = 0
        self._lost = False
        """True if a descriptor of the data that is being parsed could not be received."""
        self._saving: SaveEndp | None = None
        self.output = [ANNOUNCEMENT] if announce else []
        """Replies that `data_to_send` will return."""
        self.output_size = 0
        """Bytes of hits in `output`. The other replies are short and are not counted."""
        self.unread = False
        """True if `next_event` may return an event before more data is received."""
        self._deaf = False
        """True if all further input is ignored."""

    def receive(self, data: bytes, descriptors: Sequence[int] = (), *, lost: bool = False) -> None:
        """Take the result of one recvmsg(2), and ownership of the descriptors.

        ``lost`` is True if a descriptor could not be received.
        """
        if descriptors:
            self.descriptors.extend(descriptors)
        if self._deaf:
            return
        parser = self._parser
        if parser.at < len(parser.buffer):
            data = parser.buffer[parser.at :] + data
        elif not self._held:
            self._lost = False  # the data that the lost descriptor belonged to was parsed
        if lost:
            self._lost = True
        parser.buffer = data
        parser.at = 0
        self.unread = True

    def ignore_input(self) -> None:
        """Ignore everything that the client sends from now on, and what it has sent ahead.

        Descriptors that come are surplus.
        """
        self._deaf = True
        self._parser.buffer = b""
        self._parser.advance(0)
        self.unread = False

    def data_to_send(self) -> bytes:
        """Return the data to be sent now, and clear `output`."""
        output, self.output = self.output, []
        self.output_size = 0
        return output[0] if len(output) == 1 else b"".join(output)

    @property
    def between_exchanges(self) -> bool:
        """True if no exchange is in progress, so the client may stay idle without a time-out."""
        if self._state is not _IDLE or self._held:
            return False
        parser = self._parser
        return parser.at == len(parser.buffer) and not parser.skipping

    def surplus_descriptors(self) -> list[int]:
        """Return the descriptors that belong to no request; the caller must close them.

        Call this when all data that the client has sent so far was received. A descriptor that no
        ``save_endp`` has taken then is surplus.
        """
        if not self.descriptors or not self.between_exchanges:
            return []
        return self.close()

    def close(self) -> list[int]:
        """Return the descriptors that were not passed on; the caller must close them."""
        surplus = list(self.descriptors)
        self.descriptors.clear()
        return surplus

    def reply_status(self, status: Status) -> None:
        """Answer a save, or another request that gets only a status."""
        self.output.append(STATUS_REPLY[status])

    def reply_purged(self, count: int) -> None:
        """Answer a purge; ``count`` is the number of purged connections or bindings."""
        self.output.append(encode(zip(PURGED_NAMES, (b"0", b"%d" % count), strict=True)))

    def reply_stats(self, figures: bytes) -> None:
        """Answer a ``stats`` with its figures, in JSON."""
        self.output.append(encode(zip(STATS_NAMES, (b"0", figures), strict=True)))

    def reply_refusal(self, reason: str, shortage: str | None = None) -> None:
        """Refuse an administrator's request or a ping, with a reason.

        ``shortage`` is one word if the server is out of this resource or of time.
        """
        values = [b"%d" % Status.FAIL, reason.encode()]
        names: tuple[bytes, ...] = REFUSAL_NAMES
        if shortage is not None and self._takes_shortage:
            values.append(shortage.encode())
            names = SHORTAGE_NAMES
        self.output.append(encode(zip(names, values, strict=True)))

    def reply_hit(self, *properties: bytes) -> None:
        """Answer a find that hit; pass the properties of the binding, if any, then the endpoint's.

        In inline mode the caller must send the descriptor with this reply or before it. Otherwise
        a Deliver event requests it.
        """
        reply = encode_reply(Status.OK, *properties)
        self.output.append(reply)
        self.output_size += len(reply)
        if not self.inline:
            self._state = _AWAIT_DUMMY

    def reply_miss(self, request: FindEndp | FindDest) -> None:
        """Answer a find that missed."""
        self.output.append(EMPTY_REPLY[type(request)][Status.FAIL])

    def next_event(self) -> Event | NeedData:
        """Return the next event, or NEED_DATA.

        Raises ProtocolError if the client has sent more requests or descriptors ahead than the
        limits allow. The conversation must not be used afterwards.
        """
        parser = self._parser
        while True:
            event: Event | NeedData | None
            if parser.at == len(parser.buffer) and not (self._held and self._state is _IDLE):
                return self._wait()
            if self._state is _IDLE:
                request = self._held.popleft() if self._held else parser.next_request()
                event = NEED_DATA if isinstance(request, NeedData) else self._begin(request)
            elif self._state is _AWAIT_DESCRIPTOR:
                event = self._take_descriptor()
            else:
                event = self._take_dummy()
            if event is NEED_DATA:
                return self._wait()
            if event is not None:
                self.unread = parser.at < len(parser.buffer) or bool(self._held)
                return event

    def _wait(self) -> NeedData:
        self.unread = False
        if len(self.descriptors) > MAX_DESCRIPTORS_AHEAD:
            raise ProtocolError("too many descriptors sent ahead")
        return NEED_DATA

    def _begin(self, request: Request | Malformed) -> Event | None:
        """Turn a request into its event; None while a ``save_endp`` lacks its descriptor."""
        if isinstance(request, _FIND_OR_BIND):
            return request
        if isinstance(request, SaveEndp):
            if not self.inline:
                self.output.append(DUMMY)
            # In the base protocol a loss counts only for this request: the descriptors of other
            # requests come with bytes of their own.
            lost, self._lost = self._lost, self._lost and self.inline
            if self.descriptors:
                # In the base protocol the descriptor came early. The byte that should have carried
                # it is then parsed as an empty message.
                return Save(request, self.descriptors.popleft())
            if self.inline or lost:
                return Save(request, None, lost)
            self._saving = request
            self._state = _AWAIT_DESCRIPTOR
            return None
        if isinstance(request, Hello):
            return self._greet(request)
        if isinstance(request, Malformed):
            return self._answer(request)
        if not self.inline:
            return self._answer(Malformed(NAMES[type(request)]))  # as in Postfix's scache(8)
        return self._begin_ping() if isinstance(request, Ping) else request

    def _begin_ping(self) -> Pinged:
        if self.descriptors:
            return Pinged(self.descriptors.popleft())
        return Pinged(None, self._lost)

    def _greet(self, request: Hello) -> Malformed | None:
        """Answer a ``hello``; return it as malformed if inline mode is not offered."""
        self._takes_shortage = SHORTAGE in (request.features or ())
        if self._not_offered is None:
            self.inline = True
            knows = request.features is not None
            self.output.append(HELLO_REPLY_WITH_FEATURES if knows else HELLO_REPLY)
            return None
        refused = Malformed(NAMES[Hello])
        if not self._takes_shortage:
            return self._answer(refused)
        self.reply_refusal(self._not_offered)
        return refused

    def _answer(self, request: Malformed) -> Malformed:
        grammar = GRAMMAR.get(request.name)
        replies = STATUS_REPLY if grammar is None else EMPTY_REPLY[grammar.kind]
        self.output.append(replies[Status.BAD])
        if self.inline and request.name in CARRIERS and self.descriptors:
            # The descriptor belongs to this message and must not be used for the next one.
            return request._replace(descriptor=self.descriptors.popleft())
        return request

    def _take_descriptor(self) -> Event:
        assert self._saving is not None
        request, self._saving = self._saving, None
        self._parser.at += len(DESCRIPTOR_BYTE)
        self._state = _IDLE
        lost, self._lost = self._lost, False
        if self.descriptors:
            return Save(request, self.descriptors.popleft())
        return Save(request, None, lost)

    def _take_dummy(self) -> Event | NeedData | None:
        """Take the expected dummy; return None after other input, such as a request sent ahead."""
        parser = self._parser
        if parser.skipping:
            return parser.skip_rest()
        sent = self._state is _AWAIT_RECEIPT
        if self._held and parser.buffer.startswith(DESCRIPTOR_BYTE, parser.at) and not sent:
            # The byte belongs to a save_endp that was sent ahead and has its descriptor already.
            parser.at += len(DESCRIPTOR_BYTE)
            return None
        if parser.buffer.startswith(DUMMY, parser.at):
            parser.advance(parser.at + len(DUMMY))
            came = True
        elif parser.buffer.startswith(REQUEST, parser.at):
            if not sent:
                return self._hold_request()
            came = False
        else:
            complete = parser.take_odd_dummy()
            if complete is None:
                return NEED_DATA
            came = complete
        self._state = _AWAIT_RECEIPT if came and not sent else _IDLE
        if sent:
            self._held_size = 0
            return _DELIVERED
        return _DELIVER if came else _ABANDONED

    def _hold_request(self) -> NeedData | None:
        """Keep a request that was sent ahead."""
        start = self._parser.at
        request = self._parser.next_request()
        if isinstance(request, NeedData):
            return NEED_DATA
        self._held_size += self._parser.at - start
        if self._held_size > self._max_ahead_size:
            raise ProtocolError("too many requests sent ahead")
        self._held.append(request)
        return None
