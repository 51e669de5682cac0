"""Counts by class of the labels, in a daemon with classes."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scache import Client
from scache.clock import wall_time
from scache.inspection.image import Image
from scache.inspection.reports import statistics
from scache.settings.classes import LabelClass
from scache.store import serialized
from scache.store.class_counts import ClassCounts
from tests.support.daemon import Daemon

CONFIG = """
[[class]]
name = "mx"
endpoint = "smtp*:25"
[[class]]
name = "smtp"
endpoint = "smtp*"
destination = "dest*"
"""


def counted(client: Client) -> dict[str, Any]:
    """Return the counts by class of a running daemon."""
    with Image.from_bytes(serialized.read(client.snapshot())) as image:
        classes: dict[str, Any] = statistics(image, wall_time(), live=True)["classes"]
        return classes


def test_requests_and_misses_are_counted_by_the_first_class_that_fits(
    path: Path, tmp_path: Path
) -> None:
    """Requests with labels of no class are not counted by class."""
    config = tmp_path / "scache.toml"
    config.write_text(CONFIG)
    with (
        Daemon(path, "--config", str(config)) as daemon,
        Client(path) as client,
        ExitStack() as stack,
    ):
        for endpoint in ("smtp\na:25", "smtp\nb", "lmtp"):
            _, theirs = map(stack.enter_context, socket.socketpair())
            client.save_endp(60, endpoint, "", theirs)
        assert client.save_dest(60, "dest", "", "smtp\nb")
        assert client.save_dest(60, "smtp\nc:25", "", "nowhere")
        for found in (client.find_dest("dest"), client.find_endp("smtp\na:25")):
            assert found is not None
            found.close()
        assert client.find_endp("smtp\nb") is None
        assert client.find_endp("unknown") is None
        one = {"ok": 1, "fail": 0, "bad": 0}
        assert counted(client) == {
            "requests": {
                "mx": {"save_endp": one, "save_dest": one, "find_endp": one},
                "smtp": {
                    "save_endp": one,
                    "save_dest": one,
                    "find_dest": one,
                    "find_endp": {"ok": 0, "fail": 1, "bad": 0},
                },
            },
            "find_misses": {"mx": {}, "smtp": {"none_left": 1}},
        }
        config.write_text(CONFIG.replace('"mx"', '"mail"'))
        os.kill(daemon.pid, signal.SIGHUP)
        assert "classes" in daemon.wait_for_log("settings reloaded")
        requests = counted(client)["requests"]
        assert requests["mail"] == {}
        assert requests["smtp"]["save_endp"] == one, "the counts of a class that stays go on"


def test_daemon_without_classes_counts_nothing_by_class(path: Path) -> None:
    """The image has no such counts."""
    with Daemon(path), Client(path) as client:
        assert client.find_endp("smtp") is None
        assert counted(client) == {}


def test_class_of_a_label_is_that_of_its_first_pattern() -> None:
    """A destination has the pattern for endpoints, unless the class has one for destinations."""
    counts = ClassCounts([LabelClass("a", "x*", "y*"), LabelClass("b", "*")])
    for _ in range(2):  # the second time from memory
        assert counts.class_of(b"x\n\xff", is_destination=False) == "a"
        assert counts.class_of(b"x", is_destination=True) == "b"
        assert counts.class_of(b"y" * 10_000, is_destination=True) == "a"
    assert ClassCounts([LabelClass("a", None, "y*")]).class_of(b"y", is_destination=False) is None
