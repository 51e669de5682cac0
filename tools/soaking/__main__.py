"""The command line of tools/soak."""

from __future__ import annotations

import json
import resource
import tempfile
from pathlib import Path

import click

from soaking.clock import Clock
from soaking.leg import Leg, Plan
from soaking.report import as_json, render


def say(text: str) -> None:
    """Tell whoever waits how far we are."""
    click.echo(text, err=True)


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.2), default=1.0, show_default=True)
@click.option("--clients", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--database",
    help="Soak this alone: a file that is to be made, or :memory:.  [default: a file for half of"
    " the time, then :memory:]",
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--strict", is_flag=True, help="Fail also when a time is too long.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the table there.")
def main(
    minutes: float,
    clients: int,
    database: str | None,
    seed: int,
    strict: bool,
    json_path: Path | None,
) -> None:
    """Let many clients, good and hostile, use a daemon for long, and check the books.

    Each connection proves its identity to whoever finds it. Every few seconds,
    and at the end, a snapshot must account for every connection that was saved,
    across restarts and steps of the clock. At the end all descriptors are back.
    Exits with 1 if anything that must hold does not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    facts = []
    with tempfile.TemporaryDirectory(prefix="scache-soak-") as name:
        directory = Path(name)
        legs = [("file", f"{name}/soak.db"), ("memory", ":memory:")]
        if database:
            legs = [(Path(database).name, database)]
        for title, each in legs:
            clock = Clock(directory)
            seconds = minutes * 60 / len(legs)
            plan = Plan(title, seconds, clients, each, seed, clock, say)
            facts += Leg(plan, directory).run()
    click.echo(render(facts))
    if json_path:
        json_path.write_text(json.dumps(as_json(facts), indent=2) + "\n", encoding="utf-8")
    bad = {"FAILED", "missed"} if strict else {"FAILED"}
    if any(fact.verdict in bad for fact in facts):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/soak")
