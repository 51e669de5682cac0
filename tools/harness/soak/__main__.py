"""The command line of tools/soak."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from common import prepare, print_table, progress

from soaking.leg import Fact, Leg


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.2), default=1.0, show_default=True)
@click.option("--strict", is_flag=True, help="Fail also when a time is too long.")
def main(minutes: float, strict: bool) -> None:
    """Let many clients, good and hostile, use a daemon for long, and check the books.

    Half of the time its database is a file, then it is in memory. Each
    connection proves its identity to the client that finds it. Every few seconds,
    and at the end, a snapshot must account for every connection that was saved,
    across restarts and steps of the clock. At the end all descriptors are back.
    Exits with 1 if anything that must hold does not.
    """
    prepare()
    facts: list[Fact] = []
    with tempfile.TemporaryDirectory(prefix="scache-soak-") as name, progress() as shown:
        legs = {"file": f"{name}/soak.db", "memory": ":memory:"}
        for title, database in shown.track(legs.items(), description="soaking"):
            seconds = minutes * 60 / len(legs)
            facts += Leg(title, database, seconds, Path(name), shown.console.print).run()
    print_table(("leg", "what", "", "bound", "value"), facts)
    bad = {"FAILED", "missed"} if strict else {"FAILED"}
    if any(fact.verdict in bad for fact in facts):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/soak")
