"""The command line of tools/stress."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from harness.display import print_table, progress
from harness.processes import prepare
from harness.stress.scenarios import SCENARIOS, Fact

EPILOG = """\b
open-files  save without end under a limit of 160 open files; the same
            with Postfix's scache(8)
dead-peers  let peers hang up, and find their connections 100 ms later
kills       kill -9 under load, again and again, on one database file
"""


@click.command(epilog=EPILOG)
@click.argument("names", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option(
    "--scale",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Scale of the numbers: 1 is 10,000 dead peers and 100 kills.",
)
def main(names: tuple[str, ...], scale: float) -> None:
    """Put the daemon under stress; without NAMES, run all scenarios.

    Exits with 1 if anything is not as it must be.
    """
    prepare()
    facts: list[tuple[str, Fact]] = []
    with progress() as shown:
        for name in shown.track(names or tuple(SCENARIOS), description="stress"):
            with tempfile.TemporaryDirectory(prefix="scache-stress-") as directory:
                facts += [(name, fact) for fact in SCENARIOS[name](Path(directory), scale)]
    marks = {True: "ok", False: "NO", None: "--"}
    rows = [(marks[fact.holds], name, fact.text) for name, fact in facts]
    print_table(("", "", ""), rows)
    if any(fact.holds is False for _, fact in facts):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/stress")
