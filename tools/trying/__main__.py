"""The command line of tools/trials."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from trying.trials import Fact, dead_peers, kills, open_files

Trial = Callable[[Path, float], Iterator[Fact]]

TRIALS: dict[str, Trial] = {
    "open-files": open_files,
    "dead-peers": dead_peers,
    "kills": kills,
}


EPILOG = """\b
open-files  saves without end with 160 open files, and what the original
            does then
dead-peers  peers that hang up while they are cached, and are asked for
            100 ms later
kills       kill -9 under load on one database file, again and again
"""


@click.command(epilog=EPILOG)
@click.argument("names", nargs=-1, type=click.Choice(list(TRIALS)))
@click.option(
    "--scale",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="This part of the tries: 1 is 10,000 dead peers and 100 kills.",
)
def main(names: tuple[str, ...], scale: float) -> None:
    """Try what must hold in hard times; without NAMES, all of it.

    Exits with 1 if anything does not hold.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = True
    for name in names or TRIALS:
        with tempfile.TemporaryDirectory(prefix="scache-trial-") as directory:
            for fact in TRIALS[name](Path(directory), scale):
                mark = {True: "ok", False: "NO", None: "--"}[fact.holds]
                click.echo(f"{mark}  {name:10}  {fact.text}")
                held = held and fact.holds is not False
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main(prog_name="tools/trials")
