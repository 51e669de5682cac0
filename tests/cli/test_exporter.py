"""``scache exporter``: the command, and a daemon that does not answer."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import pytest

from scache import Client, errors
from tests.support.as_user import AS_USER, UID
from tests.support.commands import SCACHE, run_command
from tests.support.daemon import Daemon, stopped
from tests.support.prometheus import exporting
from tests.support.wire import DEADLINE


def scraped(url: str) -> dict[str, float]:
    """Return the samples of one scrape, with their labels in the names."""
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        assert answer.status == 200
        lines = [line for line in answer.read().decode().splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_exporter_has_the_figures_of_the_daemon(path: Path) -> None:
    """They are those of the moment of the scrape."""
    request = 'scache_requests_total{class="other",request="save_dest",status="ok"}'
    with Daemon(path), exporting(path) as url, Client(path) as client:
        assert scraped(url)[request] == 0
        assert client.save_dest(60, "a", "", "b")
        figures = scraped(url)
        assert figures[request] == 1
        assert figures["scache_bindings"] == 1
        assert figures["scache_up"] == 1


def test_exporter_answers_for_a_daemon_that_hangs_or_is_away(path: Path) -> None:
    """It goes on when the daemon does."""
    with exporting(path) as url:
        assert scraped(url) == {"scache_up": 0}
        with Daemon(path) as daemon:
            assert scraped(url)["scache_up"] == 1
            with stopped(daemon.pid):
                assert scraped(url) == {"scache_up": 0}
            assert scraped(url)["scache_up"] == 1
        assert scraped(url) == {"scache_up": 0}


@pytest.mark.parametrize("option", ["--dashboard", "--alerts"])
def test_exporter_prints_files(option: str) -> None:
    """They need neither a daemon nor prometheus-client."""
    result = run_command(*SCACHE, "exporter", option)
    assert (result.returncode, result.stderr) == (errors.EXIT_OK, "")
    if option == "--dashboard":
        assert json.loads(result.stdout)["title"] == "scache"


def test_exporter_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    """The exit code is that of a wrong option."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    result = run_command(*SCACHE, "exporter", PYTHONPATH=str(tmp_path))
    assert result.returncode == errors.EXIT_SETTINGS
    assert result.stderr == (
        "scache: the exporter needs prometheus-client: pip install 'scached[exporter]'\n"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--listen", "9837"], "must be HOST:PORT, such as 127.0.0.1:9837, not '9837'"),
        (["--listen", "h:65536"], "must be HOST:PORT"),
        (["--listen", "127.0.0.1:0", "--unix", "x"], "--listen and --unix exclude each other"),
        (["--alerts", "--dashboard"], "give one of them alone"),
        (["--alerts", "--unix", "x"], "give one of them alone"),
    ],
)
def test_exporter_refuses_wrong_options(options: list[str], text: str) -> None:
    """The error is one line."""
    result = run_command(*SCACHE, "exporter", *options)
    assert result.returncode == errors.EXIT_SETTINGS
    assert text in result.stderr


def test_exporter_says_why_it_cannot_listen(tmp_path: Path) -> None:
    """The exit code is that of other sockets."""
    result = run_command(*SCACHE, "exporter", "--unix", str(tmp_path / "no" / "socket"))
    assert result.returncode == errors.EXIT_SOCKET
    assert result.stderr.endswith(
        f"cannot listen on {tmp_path}/no/socket: No such file or directory; name another address\n"
    )


@pytest.mark.root
@pytest.mark.parametrize(("admins", "permitted"), [("none", False), (str(UID), True)])
def test_exporter_without_permission_is_down(path: Path, admins: str, *, permitted: bool) -> None:
    """The daemon serves the user, who gets figures only as one of its admin_uids."""
    source = str(path)
    with Daemon(path, "--socket-mode", "0666", "--admin-uids", admins):
        script = "import pathlib, sys; from scache.screens.exporter.source import read; "
        script += "print(read(pathlib.Path(sys.argv[1])) is not None)"
        result = run_command(*AS_USER, sys.executable, "-c", script, source)
    assert result.stdout == f"{permitted}\n", result.stderr
