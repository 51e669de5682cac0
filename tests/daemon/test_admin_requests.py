"""The permission to send administrative requests, and purges by label."""

from __future__ import annotations

import os

import pytest

from scache import Client, Refused
from scache.client.exchanges import Purged
from scache.protocol.messages import PURGE_SLICE
from tests.support.as_user import GID, GROUP, UID, as_user
from tests.support.clients import Connect, Pair
from tests.support.daemon import Daemon
from tests.support.postfix_setup import private_directory
from tests.support.snapshots import opened, snapshot


@pytest.mark.parametrize(
    ("options", "groups", "permitted"),
    [
        ([], (), False),
        ([], (GROUP,), False),
        (["--admin-uids", f"0,{UID}"], (), True),
        (["--admin-gids", f"{GID}"], (), True),
        (["--admin-gids", f"{GROUP}"], (1, GROUP), True),
        (["--admin-gids", f"{GROUP}", "--admin-uids", "1"], (), False),
    ],
)
@pytest.mark.root
def test_administrative_requests_need_a_permission(
    options: list[str], groups: tuple[int, ...], permitted: bool
) -> None:
    """Root and the configured users and groups are permitted; others get a refusal."""

    def ask() -> None:
        with Client(path) as client:
            try:
                os.close(client.snapshot())
            finally:
                client.purge(["e"], ["d"])

    with private_directory() as directory:
        path = directory / "socket"
        with Daemon(path, "--socket-mode", "0666", *options), Client(path) as root:
            if permitted:
                as_user(ask, groups)
            else:
                with pytest.raises(Refused, match="not permitted"):
                    as_user(ask, groups)
            events = snapshot(
                root,
                "SELECT kind, status, uid, detail FROM event JOIN client ON client.id = client_id"
                f" WHERE uid = {UID} ORDER BY event.id",
            )
    status, detail = (0, None) if permitted else (2, "not permitted")
    kinds = ("snapshot", "purge_endp", *["purge_dest"] * permitted)
    expected = [(kind, status, UID, detail) for kind in kinds]
    if not permitted:  # both purges were sent ahead of the first refusal, or not
        events = events[: len(expected)]
    assert events == expected


def test_purge_removes_all_rows_with_these_labels(
    connect: Connect, daemon: Daemon, pair: Pair
) -> None:
    """Connections and bindings of other labels stay."""
    client = connect(daemon.path)
    many = 2 * PURGE_SLICE + 1
    ours, theirs = pair
    assert all(client.save_many([(60, "e*", f"{number}", theirs) for number in range(many)]))
    theirs.close()
    with open(os.devnull) as something:  # noqa: PTH123
        client.save_endp(60, "e2", "", something)
    client.save_dest_many([(60, "d", f"{number}", "e2") for number in range(PURGE_SLICE)])
    client.save_dest(60, "d2", "", "e2")
    assert client.purge(["e*", "nothing"], ["d", "e2"]) == Purged(many, PURGE_SLICE)
    assert ours.recv(1) == b""  # all of them are closed
    assert client.find_endp("e*") is None
    assert client.find_dest("d") is None
    found = client.find_dest("d2")
    assert found is not None
    found.close()
    assert client.purge() == Purged(0, 0)
    assert client.purge(["e*"]) == Purged(0, 0)


def test_purge_is_recorded(client: Client, pair: Pair) -> None:
    """Each event names what was purged and by which client, and the counters agree."""
    client.save_endp(60, "e", "", pair[1])
    client.save_dest(60, "d", "", "e")
    client.purge(["e"], ["d", "d"])
    with opened(client.snapshot()) as connection:
        assert connection.execute(
            "SELECT kind, status, destination, endpoint, connection_id > 0, binding_id > 0, pid"
            " FROM event JOIN client ON client.id = client_id WHERE kind GLOB 'purge*'"
        ).fetchall() == [
            ("purged", None, None, "e", 1, None, os.getpid()),
            ("purge_endp", 0, None, "e", None, None, os.getpid()),
            ("purged", None, "d", "e", None, 1, os.getpid()),
            ("purge_dest", 0, "d", None, None, None, os.getpid()),
            ("purge_dest", 0, "d", None, None, None, os.getpid()),
        ]
        counters = dict(connection.execute("SELECT name, value FROM counter").fetchall())
        assert counters["connections_purged"] == counters["bindings_purged"] == 1
        assert (counters["purge_endp_ok"], counters["purge_dest_ok"]) == (1, 2)
