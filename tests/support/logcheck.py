"""The rules of logcheck for the log of Postfix, from Debian's package logcheck-database."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

RULES = Path("/etc/logcheck/ignore.d.server/postfix")


def unusual(lines: Iterable[str]) -> list[str]:
    """Return the lines that logcheck would report, found with grep as it does.

    Without the rules, the test is skipped from here on.
    """
    if not RULES.exists():
        pytest.skip(f"{RULES} is missing: install Debian's package logcheck-database")
    rules = [rule for rule in RULES.read_text().splitlines() if rule and not rule.startswith("#")]
    patterns = [option for rule in rules for option in ("-e", rule)]
    found = subprocess.run(
        ["grep", "-E", "-v", *patterns],
        input="".join(f"{line}\n" for line in lines),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={"LC_ALL": "C"},
    )
    assert found.returncode in (0, 1)
    return found.stdout.splitlines()


def kinds_of_statistics(lines: Iterable[str]) -> set[str]:
    """Return the first words of the statistics in these lines, such as "domain lookup"."""
    texts = [line.partition(" statistics: ")[2] for line in lines]
    return {" ".join(text.split()[:2]) for text in texts if text}


ALL_KINDS = {"start interval", "domain lookup", "address lookup", "max simultaneous"}
