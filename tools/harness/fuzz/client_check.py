"""The client's half of the protocol under arbitrary input, and its invariants."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from harness.fuzz.inputs import Input, Piece
from harness.fuzz.invariants import InvariantError, messages
from scache.errors import ProtocolError, Refused
from scache.protocol.client import ClientConversation, Hit, Outcome, Send
from scache.protocol.codec import MAX_MESSAGE_SIZE, NUL
from scache.protocol.messages import (
    DESCRIPTOR_BYTE,
    PING,
    PURGE_ID,
    FindDest,
    FindEndp,
    PurgeDest,
    PurgeEndp,
    PurgeId,
    SaveDest,
    SaveEndp,
)

Exchange = Generator[Any, None, Any]

MINE = 10**6
"""Descriptors from here on are those that the client saves."""


Take = Callable[[Outcome], None]
"""A function that takes the outcome of a find, with the descriptor of a hit."""

_SAVE = SaveEndp(10, b"e", b"p")


def _ping(client: ClientConversation, descriptor: int) -> Exchange:
    """Ping a server that supports it, as `exchanges.ping` does; return True if it was sent."""
    if not client.supports_ping():
        return False
    yield from client.ping(descriptor)
    return True


EXCHANGES: dict[str, Callable[[ClientConversation, Iterator[int], Take], Exchange]] = {
    "hello": lambda client, _, __: client.hello(),
    "save_endp": lambda client, mine, _: client.save_endp(_SAVE, next(mine)),
    "save_dest": lambda client, _, __: client.save_dest(SaveDest(10, b"d", b"p", b"e")),
    "find_endp": lambda client, _, take: client.find([FindEndp(b"e")], take),
    "find_dest": lambda client, _, take: client.find([FindDest(b"d")], take),
    "save_many": lambda client, mine, _: client.save_many(
        [_SAVE, SaveEndp(0, b"", b"")], [next(mine), next(mine)]
    ),
    "find_many": lambda client, _, take: client.find([FindEndp(b"a"), FindEndp(b"b")], take),
    "snapshot": lambda client, _, __: client.snapshot(),
    "purge": lambda client, _, __: client.purge_many([PurgeEndp(b"e"), PurgeDest(b"d")]),
    "purge_ids": lambda client, _, __: client.purge_many([PurgeId(1), PurgeId(2**63 - 1)]),
    "ping": lambda client, mine, _: _ping(client, next(mine)),
}
"""The exchanges that a client may begin."""

NUMBERS = {name: at for at, name in enumerate(EXCHANGES)}
_NAMES = list(EXCHANGES)


class ClientRun:
    """A client's conversation, driven as the clients do, with a record of all it produced."""

    def __init__(self) -> None:
        self.conversation = ClientConversation()
        self.outcomes: list[object] = []
        self.sent = b""
        self.given = 0
        self.out: list[int] = []
        self._steps = 0

    def run(self, exchanges: Sequence[int], pieces: Sequence[Piece]) -> None:
        """Run the exchanges while there are pieces, hang up, and check descriptors and output."""
        incoming = iter(pieces)
        mine = iter(range(MINE, 2 * MINE))
        limit = 20 * (len(exchanges) + len(pieces)) + 20
        try:
            for number in exchanges:
                name = _NAMES[number % len(_NAMES)]
                exchange = EXCHANGES[name](self.conversation, mine, self._take_find)
                if not self._drive(name, exchange, incoming, limit):
                    break
        except (ProtocolError, Refused) as error:
            self.outcomes.append(type(error))
        self.out += self.conversation.descriptors
        if sorted(self.out) != list(range(self.given)):
            raise InvariantError(f"{self.given} descriptors went in, {sorted(self.out)} came out")
        for message in messages(self.sent):
            if message != DESCRIPTOR_BYTE and message[:5] not in (b"reque", b"dummy"):
                raise InvariantError(f"the client sent something that is no request: {message!r}")

    def _take_find(self, outcome: Outcome) -> None:
        if isinstance(outcome, Hit):
            self.out.append(self.conversation.descriptors.popleft())
        self.outcomes.append(("find", outcome))

    def _drive(self, name: str, exchange: Exchange, incoming: Iterator[Piece], limit: int) -> bool:
        """Run an exchange; return False if the stream ends first."""
        try:
            while True:
                step = next(exchange)
                self._steps += 1
                if self._steps > limit:
                    raise InvariantError("the exchange does not end")
                if isinstance(step, Send):
                    self._send(step)
                elif not self._receive(incoming):
                    exchange.close()
                    return False
        except StopIteration as stop:
            self._take(name, stop.value)
            return True

    def _send(self, step: Send) -> None:
        if not step.data:
            raise InvariantError("the client is to send nothing")
        if not all(MINE <= each < 2 * MINE for each in step.descriptors):
            raise InvariantError(
                f"the client sends descriptors that it was not given: {step.descriptors}"
            )
        if b"request\0purge_id\0" in step.data and PURGE_ID not in self.conversation.features:
            raise InvariantError("the client sends a request that the server has not listed")
        if b"request\0ping\0" in step.data and PING not in self.conversation.features:
            raise InvariantError("the client sends a ping to a server that has not listed it")
        self.sent += step.data

    def _receive(self, incoming: Iterator[Piece]) -> bool:
        for piece in incoming:
            if piece.data:
                descriptors = range(self.given, self.given + piece.descriptors)
                self.given += piece.descriptors
                self.conversation.descriptors.extend(descriptors)
                self.conversation.receive(piece.data)
                return True
        return False

    def _take(self, name: str, outcome: object) -> None:
        if name == "snapshot" or (name == "ping" and outcome):
            self.out.append(self.conversation.descriptors.popleft())
        self.outcomes.append((name, outcome))


def check_client(parsed: Input) -> None:
    """Check a client with descriptors; check also that cutting the stream changes nothing."""
    exchanges = parsed.exchanges or [0, 1, 3]
    ClientRun().run(exchanges, parsed.pieces)
    if len(parsed.stream) > MAX_MESSAGE_SIZE or NUL not in parsed.stream:
        return  # a client rejects an endless message sooner if it comes in pieces
    enough = sum(piece.descriptors for piece in parsed.pieces)
    cut, whole = ClientRun(), ClientRun()
    pieces = [piece for piece in parsed.pieces if piece.data]
    pieces[0] = pieces[0]._replace(descriptors=enough)
    cut.run(exchanges, [pieces[0], *(each._replace(descriptors=0) for each in pieces[1:])])
    whole.run(exchanges, [pieces[0]._replace(data=parsed.stream)])
    if (cut.outcomes, cut.sent) != (whole.outcomes, whole.sent):
        raise InvariantError(f"outcomes: {cut.outcomes!r} if cut, {whole.outcomes!r} if whole")
