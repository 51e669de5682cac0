"""The server's half of the conversation: bytes and descriptors in, events out.

No socket, no clock, no cache: whoever owns those feeds what was received to
`ServerConversation.receive`, takes events from `next_event` until it says
NEED_DATA, answers each request before it asks for the next event, and sends
what `data_to_send` returns.

    state       the peer owes us                next
    ----------  ------------------------------  -------------------------------------
    IDLE        a request                       IDLE, DESCRIPTOR (save_endp),
                                                DUMMY (a find that hit)
    DESCRIPTOR  one byte with a descriptor      IDLE
    DUMMY       ``dummy``, to get a descriptor  RECEIPT
    RECEIPT     ``dummy``, having got it        IDLE

A client that says ``hello`` is in inline mode from then on, and stays IDLE: its
``save_endp`` carries the descriptor on the message itself, the reply to a find
that hits carries it on the reply, and there are no dummies.

Where a client breaks the rules, we do what the genuine program does: it takes
names and values one by one, looks for ``request`` among them, gives up at the
first that is not the expected one, and never looks at what follows the last. A
message has one reply at the most. Four things differ on purpose. A descriptor
that arrives together with its ``save_endp`` is accepted. Requests sent ahead
are kept and answered in order. A connection that was found and that the client
turned away from goes back. A message that is too long is malformed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from scache.errors import ProtocolError
from scache.model import Status
from scache.protocol.codec import MAX_MESSAGE_SIZE, NEED_DATA, NUL, NeedData, encode
from scache.protocol.messages import (
    ANNOUNCEMENT,
    DESCRIPTOR_BYTE,
    DUMMY,
    EMPTY_REPLY,
    GRAMMAR,
    HELLO_REPLY,
    HELLO_REPLY_WITH_FEATURES,
    NAMES,
    PURGED_NAMES,
    REFUSAL_NAMES,
    STATUS_REPLY,
    Admin,
    FindDest,
    FindEndp,
    Hello,
    Request,
    SaveDest,
    SaveEndp,
    encode_reply,
)
from scache.protocol.request_parser import (
    ATTRIBUTES,
    MESSAGES,
    REQUEST,
    WELL_FORMED,
    Malformed,
    parse,
    read_odd,
)


class Save(NamedTuple):
    """A whole ``save_endp``; answer with `reply_status`."""

    request: SaveEndp
    descriptor: int | None
    """Now the taker's to close; None if none came."""
    lost: bool = False
    """Whether the client did send one, which could not be received."""


class Deliver(NamedTuple):
    """The client waits for the descriptor of its hit: send DESCRIPTOR_BYTE with it."""


class Delivered(NamedTuple):
    """The client has had time to take the descriptor: our copy is done with."""


class Abandoned(NamedTuple):
    """The client turned away from its hit before the descriptor was sent."""


Event = Save | SaveDest | FindEndp | FindDest | Admin | Malformed | Deliver | Delivered | Abandoned
"""A ``save_dest`` is an event as it is: answer with `reply_status`; so is a find: answer with
`reply_hit` or `reply_miss`; so is what an administrator asks: answer with `reply_status`,
`reply_purged` or `reply_refusal`."""


class _State(Enum):
    IDLE = auto()
    DESCRIPTOR = auto()
    DUMMY = auto()
    RECEIPT = auto()


# Looked up once: an enumeration's member is found by way of its metaclass.
_IDLE, _AWAIT_DESCRIPTOR, _AWAIT_DUMMY, _AWAIT_RECEIPT = _State

_FIND_OR_BIND = (FindEndp, FindDest, SaveDest)

_DELIVER, _DELIVERED, _ABANDONED = Deliver(), Delivered(), Abandoned()

MAX_DESCRIPTORS_AHEAD = 253
"""Descriptors that may wait for the rest of their messages: as many as one sendmsg(2) takes."""

MAX_AHEAD_SIZE = 4 * MAX_MESSAGE_SIZE
"""Bytes of requests that a client may send ahead while it owes us a dummy."""


class ServerConversation:
    """One client's conversation, in the base protocol of scache(8) or in inline mode."""

    def __init__(
        self,
        *,
        announce: bool = True,
        offer_inline: bool = True,
        max_message_size: int = MAX_MESSAGE_SIZE,
        max_ahead_size: int = MAX_AHEAD_SIZE,
    ) -> None:
        """Take requests of up to so many bytes, and so many bytes of them ahead of a dummy.

        Without ``offer_inline`` nobody gets to know that there is more than the base protocol.
        """
        self._offers_inline = offer_inline
        self._max_message_size = max_message_size
        self._max_ahead_size = max_ahead_size
        self.inline = False
        """Whether the client has asked for inline mode."""
        self._state = _IDLE
        self._buffer = b""
        self._at = 0
        self._scanned = 0
        """How much of the message at `_at` is known to be whole attributes."""
        self._skipping = False
        """Whether the message at `_at` is the rest of one that was too long."""
        self.descriptors: deque[int] = deque()
        """Those that were received and not passed on yet."""
        self._held: deque[Request | Malformed] = deque()
        self._held_size = 0
        self._lost = False
        """Whether descriptors of what is being read could not be received."""
        self._saving: SaveEndp | None = None
        self.output = [ANNOUNCEMENT] if announce else []
        """What waits for `data_to_send`."""
        self.output_size = 0
        """Bytes of hits in it; the other replies are short."""
        self.unread = False
        """Whether `next_event` may have something to say before more is received."""

    def receive(self, data: bytes, descriptors: Sequence[int] = (), *, lost: bool = False) -> None:
        """Take what one recvmsg(2) brought; the descriptors are ours from here on.

        ``lost`` says that one came that could not be received.
        """
        if descriptors:
            self.descriptors.extend(descriptors)
        if self._at < len(self._buffer):
            data = self._buffer[self._at :] + data
        elif not self._held:
            self._lost = False  # what it belonged to was read
        if lost:
            self._lost = True
        self._buffer = data
        self._at = 0
        self.unread = True

    def data_to_send(self) -> bytes:
        """Return what is to be sent now, and forget it."""
        output, self.output = self.output, []
        self.output_size = 0
        return output[0] if len(output) == 1 else b"".join(output)

    @property
    def between_exchanges(self) -> bool:
        """Whether the client owes us nothing, so that it may be silent for as long as it likes."""
        idle = self._state is _IDLE and not self._held
        return idle and self._at == len(self._buffer) and not self._skipping

    def surplus_descriptors(self) -> list[int]:
        """Return, to be closed, the descriptors that belong to no request.

        To be asked when all that the client has sent so far was received: then
        a descriptor that no ``save_endp`` took will never be asked for.
        """
        if not self.descriptors or not self.between_exchanges:
            return []
        return self.close()

    def close(self) -> list[int]:
        """Return, to be closed, every descriptor that was received and not passed on."""
        surplus = list(self.descriptors)
        self.descriptors.clear()
        return surplus

    def reply_status(self, status: Status) -> None:
        """Answer a save, or what there is no more to say of."""
        self.output.append(STATUS_REPLY[status])

    def reply_purged(self, count: int) -> None:
        """Answer a purge of so many connections or bindings."""
        self.output.append(encode(zip(PURGED_NAMES, (b"0", b"%d" % count), strict=True)))

    def reply_refusal(self, reason: str) -> None:
        """Answer what an administrator asked and does not get."""
        values = (b"%d" % Status.FAIL, reason.encode())
        self.output.append(encode(zip(REFUSAL_NAMES, values, strict=True)))

    def reply_hit(self, *properties: bytes) -> None:
        """Answer a find that hit: the properties of the binding, if any, then the endpoint's.

        In inline mode the descriptor is to go with this reply, or before it;
        else a Deliver event asks for it.
        """
        reply = encode_reply(Status.OK, *properties)
        self.output.append(reply)
        self.output_size += len(reply)
        if not self.inline:
            self._state = _AWAIT_DUMMY

    def reply_miss(self, request: FindEndp | FindDest) -> None:
        """Answer a find that found nothing."""
        self.output.append(EMPTY_REPLY[type(request)][Status.FAIL])

    def next_event(self) -> Event | NeedData:
        """Return what the client asks for next.

        Raises ProtocolError when the client has sent more requests or
        descriptors ahead than we keep: the conversation cannot go on.
        """
        while True:
            event: Event | NeedData | None
            if self._at == len(self._buffer) and not (self._held and self._state is _IDLE):
                return self._wait()
            if self._state is _IDLE:
                request = self._held.popleft() if self._held else self._next_request()
                event = NEED_DATA if isinstance(request, NeedData) else self._begin(request)
            elif self._state is _AWAIT_DESCRIPTOR:
                event = self._take_descriptor()
            else:
                event = self._take_dummy()
            if event is NEED_DATA:
                return self._wait()
            if event is not None:
                self.unread = self._at < len(self._buffer) or bool(self._held)
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
            # In the base protocol one came early, if any: the others come with bytes of their own.
            lost, self._lost = self._lost, self._lost and self.inline
            if self.descriptors:
                # In the base protocol it came early, and the byte that should have carried it
                # is an empty message to us.
                return Save(request, self.descriptors.popleft())
            if self.inline or lost:
                return Save(request, None, lost)
            self._saving = request
            self._state = _AWAIT_DESCRIPTOR
            return None
        if isinstance(request, Hello):
            if self._offers_inline:
                self.inline = True
                knows = request.features is not None
                self.output.append(HELLO_REPLY_WITH_FEATURES if knows else HELLO_REPLY)
                return None
            request = Malformed(NAMES[Hello])
        if isinstance(request, Admin) and not self.inline:
            request = Malformed(NAMES[type(request)])  # the genuine program knows none of these
        return self._answer(request) if isinstance(request, Malformed) else request

    def _answer(self, request: Malformed) -> Malformed:
        grammar = GRAMMAR.get(request.name)
        replies = STATUS_REPLY if grammar is None else EMPTY_REPLY[grammar.kind]
        self.output.append(replies[Status.BAD])
        if self.inline and request.name == NAMES[SaveEndp] and self.descriptors:
            # It came for this message, and must not become the next one's.
            return request._replace(descriptor=self.descriptors.popleft())
        return request

    def _take_descriptor(self) -> Event:
        assert self._saving is not None
        request, self._saving = self._saving, None
        self._at += len(DESCRIPTOR_BYTE)
        self._state = _IDLE
        lost, self._lost = self._lost, False
        if self.descriptors:
            return Save(request, self.descriptors.popleft())
        return Save(request, None, lost)

    def _take_dummy(self) -> Event | NeedData | None:
        """Read on for the dummy; None when a request came instead, which is kept for later."""
        if self._skipping:
            return self._pass_over_rest()
        buffer = self._buffer
        sent = self._state is _AWAIT_RECEIPT
        if self._held and buffer.startswith(DESCRIPTOR_BYTE, self._at) and not sent:
            # It belongs to a save_endp that was sent ahead, which has its descriptor already.
            self._at += len(DESCRIPTOR_BYTE)
            return None
        if buffer.startswith(DUMMY, self._at):
            self._advance(self._at + len(DUMMY))
            came = True
        elif buffer.startswith(REQUEST, self._at):
            if not sent:
                return self._hold_request()
            came = False
        else:
            complete = self._take_odd_dummy()
            if complete is None:
                return NEED_DATA
            came = complete
        self._state = _AWAIT_RECEIPT if came and not sent else _IDLE
        if sent:
            self._held_size = 0
            return _DELIVERED
        return _DELIVER if came else _ABANDONED

    def _pass_over_rest(self) -> NeedData | None:
        """Pass over the rest of a request that was sent ahead and is too long: it is no dummy."""
        end = self._message_end()
        if end is not None:
            self._advance(end)
            return None
        if self._too_long:
            self._skip()
        return NEED_DATA

    def _take_odd_dummy(self) -> bool | None:
        """Take a message; return whether it is a dummy with something to it, None if it may be."""
        end = self._message_end()
        if end is None:
            return None if not self._too_long else self._skip()
        fits = end - self._at <= self._max_message_size
        came = fits and self._buffer.startswith(b"dummy\0", self._at)
        self._advance(end)
        return came

    def _hold_request(self) -> NeedData | None:
        """Keep a request that was sent ahead."""
        start = self._at
        request = self._next_request()
        if isinstance(request, NeedData):
            return NEED_DATA
        self._held_size += self._at - start
        if self._held_size > self._max_ahead_size:
            raise ProtocolError("too many requests sent ahead")
        self._held.append(request)
        return None

    def _next_request(self) -> Request | Malformed | NeedData:
        """Parse the next request, passing over messages that are none."""
        parsed = None if self._skipping else parse(self._buffer, self._at, self._max_message_size)
        if parsed is None:
            return self._next_odd_request()
        request, self._at = parsed
        self._scanned = 0
        return request

    def _next_odd_request(self) -> Request | Malformed | NeedData:
        """Parse the next request when it is not complete or not well-formed."""
        while True:
            start = self._pass_over_messages()
            end = self._message_end()
            match = WELL_FORMED.match(self._buffer, start) if start > self._at else None
            if match is not None and (end is None or match.end() <= end):
                # What stands before it is no message but a string that lost its own.
                self._advance(start)
                return self._next_request()
            if end is None and not self._too_long:
                return NEED_DATA
            # Of a message that is too long its beginning counts, however much of it has come.
            limit = self._at + self._max_message_size
            complete = end is not None and end <= limit
            tokens = self._buffer[self._at : end if complete else limit].split(NUL)
            skipping = self._skipping
            if end is None:
                self._skip()
            else:
                self._advance(end)
            if b"request" in tokens and not skipping:
                return read_odd(tokens[tokens.index(b"request") + 1 :], complete=complete)

    def _pass_over_messages(self) -> int:
        """Pass over whole messages that are no requests; return where a request may begin, or 0."""
        if self._buffer.startswith(REQUEST, self._at):
            return self._at
        start = self._buffer.find(NUL + REQUEST, self._at) + len(NUL)
        if not (self._scanned or self._skipping):
            match = MESSAGES.match(self._buffer, self._at, start or len(self._buffer))
            assert match is not None
            self._advance(match.end())
        return start

    def _message_end(self) -> int | None:
        """Return where the message that comes next ends; None if it is not complete."""
        match = ATTRIBUTES.match(self._buffer, self._at + self._scanned)
        assert match is not None
        if self._buffer.startswith(NUL, match.end()):
            return match.end() + len(NUL)
        self._scanned = match.end() - self._at
        return None

    def _advance(self, at: int) -> None:
        """Go on with the message that begins there."""
        self._at = at
        self._scanned = 0
        self._skipping = False

    @property
    def _too_long(self) -> bool:
        return len(self._buffer) - self._at > self._max_message_size

    def _skip(self) -> bool:
        """Forget what has come of a message without end, and let its rest pass; return False.

        Of the attribute that is under way so much is kept that names are still
        told from values.
        """
        name, end, value = self._buffer[self._at + self._scanned :].partition(NUL)
        self._buffer = name[:1] + end + value[:1]
        self._advance(0)
        self._skipping = True
        return False
