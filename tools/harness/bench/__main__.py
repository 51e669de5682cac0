"""The command line of tools/bench."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sysconfig
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import click

from harness.bench.load import Load
from harness.bench.plot import curves, draw
from harness.bench.rows import COLUMNS, ROWS
from harness.bench.scenarios import Bench, measure
from harness.bench.servers import Failed, NotRun
from harness.display import print_table, progress
from harness.processes import prepare


def machine() -> dict[str, str | int]:
    """Return the properties of the machine on which the figures depend."""
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return {
        "python": platform.python_version(),
        "python_build": "optimized" if optimized else "not optimized",
        "sqlite": sqlite3.sqlite_version,
        "kernel": platform.release(),
        "processors": os.cpu_count() or 0,
    }


def processor_time() -> tuple[int, int]:
    """Return the ticks of all processors, and those of them that a hypervisor stole."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(ticks[:8]), ticks[7]


@click.command()
@click.option(
    "--rows",
    multiple=True,
    metavar="PATTERN",
    help=f"Measure these rows only: a name or a pattern like 'base-*'. "
    f"The names are {', '.join(row.name for row in ROWS)}.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Make a short run with small numbers, to see that everything works.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write every figure to this file."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Instead of the table, plot the cost of a pair against the number of connections cached.",
)
def main(rows: tuple[str, ...], quick: bool, json_path: Path | None, plot: Path | None) -> None:
    """Compare this daemon with Postfix's scache(8), and print one table.

    Every ratio is the time of this daemon divided by that of the reference:
    smaller is better. It is the median over several rounds in which both are
    measured in turn, with the spread. The reference is Postfix's scache(8) unless
    the notes name another. "best" divides the best rounds of each, "cpu" the
    processor time of the servers alone. "must" and "aim" are the limit and the
    goal of this project.
    """

    def wanted(name: str) -> bool:
        return not rows or any(fnmatchcase(name, pattern) for pattern in rows)

    if not any(wanted(row.name) for row in ROWS):
        raise click.BadParameter("no row has this name", param_hint="--rows")
    prepare()
    with tempfile.TemporaryDirectory(prefix="scache-bench-") as directory, progress() as shown:
        try:
            load = Load(Path(directory))
            bench = Bench(load, *((2, 50, 20, 600, 20) if quick else (15, 200, 50, 18_000, 2_000)))
            if plot:
                draw(curves(bench, shown), plot)
                return
        except (Failed, NotRun) as reason:
            raise click.ClickException(str(reason)) from None
        total, stolen = processor_time()
        results = measure(bench, wanted, shown)
        total_after, stolen_after = processor_time()
    print_table(COLUMNS, [result.cells() for result in results])
    about = machine() | {"stolen": f"{(stolen_after - stolen) / (total_after - total):.1%}"}
    if quick:
        click.echo("\nThe figures of a quick run mean little.")
    click.echo("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if json_path:
        document = {"machine": about, "rows": [result.as_json() for result in results]}
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if any(result.note.startswith("failed") for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/bench")
