"""The command ``scache stats``."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from scache import Unavailable
from scache.cli.commands.stats import Meter
from scache.cli.main import EXIT_INTERRUPTED, execute
from scache.cli.render.stats_screen import screen
from scache.cli.target import Target
from scache.vocabulary import COUNTERS, MISS_REASONS, REQUESTS
from tests.support.commands import SCACHE
from tests.support.daemon import Daemon
from tests.support.looking import Capture, FakeSleep, StubDaemon, run
from tests.support.sample_database import NOW, ODD, filling
from tests.support.terminal import on_terminal

pytestmark = pytest.mark.usefixtures("narrow")


def test_stats_json_has_all_figures_of_the_screen(filled: Path, capsys: Capture) -> None:
    """Without ``--watch`` there are no rates."""
    figures = json.loads(run(capsys, "stats", "--database", filled))
    assert figures["daemon"]["version"] == "1.2.3"
    assert figures["daemon"]["running"] is None
    assert figures["clients"] == {"connected": 1, "total": 0}
    assert figures["connections"]["cached"] == len(ODD)
    assert figures["connections"]["endpoints"] == len(ODD)
    assert figures["bindings"] == {"live": len(ODD), "destinations": len(ODD)}
    assert figures["events"]["kept"] == 11
    assert figures["requests"]["find_dest"] == {
        "ok": 9,
        "fail": 1,
        "bad": 0,
        "hit_rate": 0.9,
    }
    assert figures["requests"]["find_endp"]["hit_rate"] is None
    assert figures["hit_rate"] == {"per_find": 0.9, "per_delivery": 0.9}
    assert figures["misses"] == dict.fromkeys(MISS_REASONS, 0)
    assert figures["ways_out"]["found"] == 9
    assert figures["limits"]["audit_rows"] == {"now": 11, "limit": 100}
    assert figures["limits"]["ttl_limit"] == {"now": 60, "limit": 300}
    assert "60.0" not in json.dumps(figures["limits"])
    assert figures["counters"].items() >= {"snapshot_bad": 0, "limit_clients": 0}.items()
    assert figures["settings"]["database"] == "/var/cache.db"
    assert "per_second" not in figures


def test_stats_has_hit_rates_per_find_and_per_delivery(filled: Path, capsys: Capture) -> None:
    """A delivery that asks for the destination and then for the endpoint counts once."""
    with filling(filled) as cached:
        cached.count(find_dest_ok=2, find_dest_fail=8, find_endp_ok=4, find_endp_fail=6)
        cached.count(finds_continued=8, find_misses_expired=14)
    figures = json.loads(run(capsys, "stats", "--database", filled))
    assert figures["hit_rate"] == {"per_find": 0.3, "per_delivery": 0.5}
    assert figures["misses"]["expired"] == 14
    out = run(capsys, "stats", "--database", filled, "--format", "table")
    assert re.search(r"^per find +30\.0%$", out, re.MULTILINE)
    assert re.search(r"^per delivery +50\.0%$", out, re.MULTILINE)


def test_stats_csv_has_one_figure_for_each_row(filled: Path, capsys: Capture) -> None:
    """Nested figures have names with dots."""
    out = run(capsys, "stats", "--database", filled, "--format", "csv")
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["at", "name", "value"]
    figures = {name: value for _, name, value in rows}
    assert figures["requests.find_dest.hit_rate"] == "0.9"
    assert figures["connections.cached"] == str(len(ODD))


@pytest.mark.parametrize("columns", ["60", "100"])
def test_stats_screen_fits_width(
    filled: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """No line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    with filling(filled) as cached:
        cached.insert("setting", name="x", value="y")
        cached.count(connections_expired=1_000_000)
    lines = run(capsys, "stats", "--database", filled, "--format", "table").splitlines()
    assert all(len(line) <= int(columns) for line in lines)
    assert lines[0] == "scache 1.2.3, process 42, running or crashed"
    assert re.search(r"^find_dest +9 +1 +0 +90\.0%$", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^expired +1,000,000 +0$", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^audit_rows +11 +100 +11%$", "\n".join(lines), re.MULTILINE)


def test_stats_shows_use_of_limits(filled: Path, capsys: Capture) -> None:
    """A limit for each label shows the fullest label; 0 is no limit, and is not shown."""
    with filling(filled) as cached:
        for number in range(100, 103):
            cached.connection(number, b"e")
            cached.binding(number + 10, b"d", b"%d" % number)
        cached.setting(
            max_clients="1000",
            max_connections="0",
            max_connections_per_endpoint="6",
            max_bindings_per_destination="10",
            max_bindings="20",
            open_files_limit="1024",
        )
        cached.count(limit_clients=5)
    figures = json.loads(run(capsys, "stats", "--database", filled))
    assert {name: tuple(each.values()) for name, each in figures["limits"].items()} == {
        "max_clients": (1, 1000),
        "max_connections_per_endpoint": (3, 6),
        "max_bindings_per_destination": (3, 10),
        "max_bindings": (len(ODD) + 3, 20),
        "open_files_limit": (len(ODD) + 3 + 1, 1024),
        "ttl_limit": (60, 300),
        "audit_rows": (11, 100),
    }
    assert figures["limits_reached"]["clients"] == 5
    assert figures["limits_reached"]["message_size"] == 0
    out = run(capsys, "stats", "--database", filled, "--format", "table")
    assert re.search(r"^open_files_limit +about 13 +1,024 +1%$", out, re.MULTILINE)
    assert re.search(r"^limits reached +times\nclients +5$", out, re.MULTILINE)
    assert "/s" not in out
    assert "find_endp" not in out


def test_stats_screen_fits_24_lines(filled: Path) -> None:
    """Limits that are used most, limits reached, close reasons and rates stay on the screen."""
    with filling(filled) as cached:
        limits = ("clients", "connections", "bindings_per_destination")
        cached.setting(**{f"max_{name}": "1000" for name in limits}, open_files_limit="10")
        cached.count(**{f"{kind}_ok": 5 for kind in REQUESTS if kind.endswith("p")})
        cached.count(connections_expired=7, limit_clients=5)
    meter = Meter(Target(str(filled)))
    meter.read()
    text = screen(Target(str(filled)), meter.read(), 60, 24).plain
    assert len(text.splitlines()) <= 24
    assert all(word in text for word in ("open_files_limit", "limits reached", "expired", "/s"))


def test_stats_fits_terminal_even_if_everything_is_used(filled: Path) -> None:
    """The last line says how many lines are missing, and the prompt of the shell is below it."""
    with filling(filled) as cached:
        names = [name.removeprefix("limit_") for name in COUNTERS if name.startswith("limit_")]
        cached.setting(**{f"max_{name}": "1000" for name in names}, open_files_limit="10")
        cached.count(**dict.fromkeys(COUNTERS, 5))
    with on_terminal(*SCACHE, "stats", "--database", str(filled), columns=80) as terminal:
        text = re.sub(r"\x1b\[[\d;]*m", "", terminal.read_to_end())
    lines = text.splitlines()
    assert len(lines) == 23
    assert all(len(line) <= 80 for line in lines)
    assert re.fullmatch(r"\(\d+ more lines: add --format table \| cat\)", lines[-1])


def test_stats_shows_how_long_stopped_daemon_ran(file: Path, capsys: Capture) -> None:
    """The run has its end in the file."""
    with filling(file) as cached:
        cached.instance(stopped_at=NOW + 90)
    out = run(capsys, "stats", "--database", file, "--format", "table")
    assert out.startswith("scache 1.2.3, process 42, stopped; was up 1m 30s\n")


def test_stats_shows_up_time_of_running_daemon(
    daemon: StubDaemon, filled: Path, capsys: Capture
) -> None:
    """Its image has its descriptors, which count as open files."""
    with filling(filled) as cached:
        cached.setting(open_files_limit="1024")
        for number in range(500):
            cached.descriptor(number, number)
    daemon.file = filled
    figures = json.loads(run(capsys, "stats"))
    assert figures["daemon"]["running"] is True
    assert figures["daemon"]["uptime"] > 0
    assert figures["limits"]["open_files_limit"] == {"now": 501, "limit": 1024}
    assert run(capsys, "stats", "--format", "table").startswith("scache 1.2.3, process 42, up ")


def test_stats_of_file_without_end_says_running_or_crashed(
    file: Path, tmp_path: Path, capsys: Capture
) -> None:
    """So it is for the file of a killed daemon and for a dump of a running one."""
    copy = tmp_path / "copy.db"
    with Daemon(tmp_path / "socket", database=file) as daemon:
        run(capsys, "dump", "--socket", daemon.path, "--output", copy)
    for each in (file, copy):
        figures = json.loads(run(capsys, "stats", "--database", each))
        assert (figures["daemon"]["running"], figures["daemon"]["uptime"]) == (None, None)
        out = run(capsys, "stats", "--database", each, "--format", "table")
        assert out.splitlines()[0].endswith(", running or crashed")


def test_stats_watch_has_rates_from_second_look_on(
    daemon: StubDaemon,
    filled: Path,
    capsys: Capture,
    sleep: FakeSleep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are none when counters started over; while no daemon answers, one line says so."""
    daemon.file = filled
    clock = [100.0]
    monkeypatch.setattr("scache.cli.commands.stats.time.monotonic", lambda: clock[0])

    def later(**counters: int) -> Callable[[], None]:
        def happens() -> None:
            clock[0] += 2
            with filling(filled) as cached:
                cached.count(**counters)

        return happens

    def away() -> None:
        clock[0] += 2
        daemon.error = Unavailable("gone")

    def back() -> None:
        clock[0] += 2
        daemon.error = None

    sleep.then(later(find_dest_ok=29, snapshot_ok=4))
    sleep.then(later())
    sleep.then(away)
    sleep.then(back)
    sleep.then(later(find_dest_ok=1))
    assert execute(["stats", "--watch", "2", "--format", "jsonl"]) == EXIT_INTERRUPTED
    output = capsys.readouterr()
    rates = [json.loads(line).get("per_second") for line in output.out.splitlines()]
    assert rates == [None, {"find_dest_ok": 10, "snapshot_ok": 2}, {}, {}, None]
    assert output.err == "scache: gone; waiting for it\n"


def test_stats_screen_has_column_of_rates(filled: Path, capsys: Capture, sleep: FakeSleep) -> None:
    """The column is there from the second screen on."""

    def later() -> None:
        with filling(filled) as cached:
            cached.count(find_dest_ok=10**9)

    sleep.then(later)
    arguments = ["stats", "--watch", "2", "--format", "table", "--database", str(filled)]
    assert execute(arguments) == EXIT_INTERRUPTED
    screens = capsys.readouterr().out.split("scache 1.2.3")[1:]
    (before,), (after,) = (re.findall(r"^find_dest.*$", each, re.MULTILINE) for each in screens)
    assert len(before.split()) == 5
    assert len(after.split()) == 6


@pytest.mark.parametrize("width", [40, 200])
def test_stats_shows_fault_of_database_first(
    filled: Path, capsys: Capture, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole text of the fault is shown above the figures."""
    fault = "it cannot be written (database or disk is full): saves are refused until it can"
    with filling(filled) as cached:
        cached.setting(database_fault=fault)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(capsys, "stats", "--database", filled, "--format", "table").splitlines()
    assert " ".join(lines[: lines.index("")]) == f"DATABASE: {fault}"
    assert max(map(len, lines)) <= width
    figures = json.loads(run(capsys, "stats", "--database", filled, "--format", "json"))
    assert figures["database"]["fault"] == fault
