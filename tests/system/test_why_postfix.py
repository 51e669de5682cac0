"""The reasons of misses in the traffic of a real Postfix, in words."""

from __future__ import annotations

import socket

import pytest

from scache import Client
from scache.escape import shown
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon
from tests.support.dialogue import eventually
from tests.support.postfix_setup import MAIL_OWNER
from tests.support.private_postfix import PrivatePostfix
from tests.support.snapshots import snapshot
from tests.support.wire import Wire, encode

pytestmark = [pytest.mark.postfix, pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = {
    "unknown": "nothing of the label was remembered since the start of the daemon",
    "purged": "an administrator had purged the last one",
    "none_left": "all had been found",
    "limit": "the last one was closed for another one",
    "expired": "the time to live was over",
    "hung_up": "the peer had closed the last one",
    "refused": "a save was refused before",
}


class Mail:
    """A Postfix whose messages are sent one after the other, and what it saved and missed."""

    def __init__(self, postfix: PrivatePostfix, client: Client) -> None:
        self._postfix = postfix
        self._client = client
        self._sent = 0

    def deliver(self) -> None:
        """Deliver a message, and wait until smtp(8) has saved its connection."""
        self._sent += 1
        self._postfix.send(1, 1)
        self._postfix.wait_delivered(self._sent)
        saved = "SELECT id FROM event_log WHERE kind = 'save_endp' AND program = 'smtp'"
        eventually(lambda: len(snapshot(self._client, saved)) == self._sent)

    def wait_for(self, kind: str) -> None:
        """Wait until a connection has left for this reason."""
        eventually(lambda: snapshot(self._client, f"SELECT 1 FROM event WHERE kind = '{kind}'"))

    @property
    def endpoint(self) -> str:
        """The endpoint of smtp(8)."""
        ((label,),) = snapshot(
            self._client,
            "SELECT DISTINCT endpoint FROM event_log WHERE program = 'smtp' "
            "AND endpoint IS NOT NULL",
        )
        return str(label)


def test_why_explains_each_miss_of_postfix() -> None:
    """Before each message, the latest connection of its endpoint ends in another way."""
    options = ("--socket-owner", MAIL_OWNER, "--ttl-limit", "300", "--max-connections", "1")
    with (
        PrivatePostfix(cache_time_limit=300) as postfix,
        Daemon(postfix.cache_socket, *options) as daemon,
        Client(daemon.path) as client,
    ):
        mail = Mail(postfix, client)
        mail.deliver()  # unknown
        label = mail.endpoint
        client.purge([label])
        mail.deliver()
        found = client.find_endp(label)
        assert found is not None
        mail.deliver()  # none_left: this process has the connection
        found.close()
        one, other = socket.socketpair()
        with one, other:
            assert client.save_endp(300, "another", "", one)
            mail.deliver()  # limit: there was room for one connection
            assert client.save_endp(1, label, "", one)
            mail.wait_for("expired")
            mail.deliver()
        one, other = socket.socketpair()
        with one:
            assert client.save_endp(300, label, "", one)
        other.close()
        mail.wait_for("hung_up")
        mail.deliver()
        client.purge([label])
        with Wire(daemon.path) as wire:
            wire.announcement()
            save = [("request", "save_endp"), ("ttl", "9"), ("label", label), ("property", "")]
            wire.send(encode([(name.encode(), value.encode()) for name, value in save]))
            wire.receive_message()
            wire.send(encode([(b"request", b"find_endp"), (b"label", b"x")]))  # no descriptor
            wire.receive_message()
        mail.deliver()  # refused
        told = run_command(*SCACHE, "why", shown(label.encode()), "--socket", daemon.path)
        lines = told.stdout.splitlines()
        for reason, words in WORDS.items():
            (missed,) = (line for line in lines if line.startswith(f"  missed: 1 find, {reason}: "))
            assert words in missed
            assert any(line.startswith(f"  to change ({reason}): ") for line in lines)
