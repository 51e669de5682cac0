"""The command line of tools/soak."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from harness.display import print_table, progress
from harness.processes import prepare
from harness.soak.report import Fact
from harness.soak.soak_run import SoakRun


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.2), default=1.0, show_default=True)
@click.option("--strict", is_flag=True, help="Fail also if a latency is above its bound.")
def main(minutes: float, strict: bool) -> None:
    """Run many clients, good and hostile, and check the accounting invariants.

    The first run uses a database file, the second a database in memory; each
    takes half of the time. Every connection carries a token that the client that
    finds it reads. Every few seconds, and at the end, a snapshot must account for
    every connection that was saved, across restarts and clock steps. At the end
    the daemon must have as many descriptors open as at the start.
    Exits with 1 if an invariant does not hold.
    """
    prepare()
    facts: list[Fact] = []
    with tempfile.TemporaryDirectory(prefix="scache-soak-") as name, progress() as shown:
        databases = {"file": f"{name}/soak.db", "memory": ":memory:"}
        for title, database in shown.track(databases.items(), description="soak"):
            seconds = minutes * 60 / len(databases)
            facts += SoakRun(title, database, seconds, Path(name), shown.console.print).run()
    print_table(("database", "check", "", "bound", "value"), facts)
    bad = {"FAILED", "missed"} if strict else {"FAILED"}
    if any(fact.verdict in bad for fact in facts):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/soak")
