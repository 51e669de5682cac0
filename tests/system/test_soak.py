"""tools/soak and tools/fuzz find no bug, and find the bugs that a test plants."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from scache import Client
from scache.inspection.image import Image
from tests.support.commands import import_tool, run_tool
from tests.support.daemon import Daemon
from tests.support.snapshots import opened


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("minutes", [0.2, pytest.param(2, marks=pytest.mark.long)])
def test_soak_holds_every_invariant(minutes: float) -> None:
    """The invariants hold under hostile clients, restarts and clock steps."""
    result = run_tool("-m", "harness.soak", "--minutes", f"{minutes}")
    assert result.returncode == 0, result.stdout
    assert "FAILED" not in result.stdout
    rows = [re.split("  +", line) for line in result.stdout.splitlines()]
    for database in ("file", "memory"):
        for what in ("wrong hits", "found twice", "checks of the audit log"):
            assert [database, what, "ok"] in [row[:3] for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("inputs", [4000, pytest.param(40000, marks=pytest.mark.long)])
def test_fuzzing_finds_no_bug(inputs: int) -> None:
    """Thousands of inputs, the same in every run, show no bug."""
    result = run_tool("-m", "harness.fuzz", "--engine", "hypothesis", "--inputs", f"{inputs}")
    assert result.returncode == 0, result.stdout
    assert f"{inputs} inputs" in result.stdout
    assert "no bug" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        "from scache.protocol.server import ServerConversation as S; S.close = lambda self: []",
        (
            "from scache.protocol.client import ClientConversation as C; r = C.receive;"
            " C.receive = lambda self, *a, **k: (len(self.descriptors) > 4 and"
            " self.descriptors.clear(), r(self, *a, **k))"
        ),
        "import scache.protocol.codec as c; c.decode_integer = int",
        (
            "import scache.protocol.server as s; s.EMPTY_REPLY = {k: s.STATUS_REPLY for k in"
            " s.EMPTY_REPLY}"
        ),
    ],
    ids=["leak in the server", "leak in the client", "ValueError", "wrong reply"],
)
def test_fuzzing_finds_a_planted_bug(bug: str, tmp_path: Path) -> None:
    """The exit code is 1, and the input is kept and shows the bug again."""
    script = tmp_path / "planted.py"
    script.write_text(f"{bug}\nfrom harness.fuzz.__main__ import main\nmain()\n")
    result = run_tool(script, "--engine", "hypothesis", "--inputs", "20000", "--keep", tmp_path)
    assert result.returncode == 1, result.stdout
    assert run_tool(script, tmp_path / "scache-fuzz-failure").returncode == 1
    assert run_tool("-m", "harness.fuzz", tmp_path / "scache-fuzz-failure").returncode == 0


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        ("SELECT 1", None),
        ("DELETE FROM connection", "gone without a way out"),
        ("DELETE FROM event WHERE kind = 'found'", "gone without a way out"),
        (("INSERT INTO event (at, kind, endpoint, connection_id) SELECT at, 'purged', endpoint,"
         " connection_id FROM event WHERE kind = 'found'"), "with two ways out"),
        ("UPDATE event SET endpoint = 'x' WHERE kind = 'found'", "another endpoint"),
        ("UPDATE counter SET value = 7 WHERE name = 'save_endp_ok'", "counters"),
        (("UPDATE event SET ttl = ttl + 100 WHERE kind = 'save_endp';"
         " UPDATE event SET kind = 'expired' WHERE kind = 'found'"), "expired too early"),
    ],
)  # fmt: skip
def test_accounting_check_reports_each_violation(
    path: Path, tamper: str, complaint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit log that does not account for every connection is reported."""
    accounting_check = import_tool(monkeypatch, "harness.soak.accounting_check")
    ours, theirs = socket.socketpair()
    with ours, theirs, Daemon(path), Client(path) as client:
        for endpoint in ("e", "f"):
            client.save_endp(60, endpoint, "", theirs)
        found = client.find_endp("f")
        assert found is not None
        found.close()
        with opened(client.snapshot()) as copy:
            copy.executescript(tamper)
            wrong = accounting_check.check(Image(copy)).wrong
    assert any(complaint in each for each in wrong) if complaint else wrong == []
