"""The command line of tools/bench."""

from __future__ import annotations

import json
import os
import platform
import resource
import sqlite3
import sysconfig
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import click

from benchmark.errors import NotRun
from benchmark.load import Load
from benchmark.plot import curves, draw
from benchmark.rows import ROWS, Row
from benchmark.scenarios import Bench, measure_rows
from benchmark.table import render


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return {
        "python": platform.python_version(),
        "python_build": "optimized" if optimized else "not optimized",
        "sqlite": sqlite3.sqlite_version,
        "kernel": platform.release(),
        "processors": os.cpu_count() or 0,
    }


def processor_time() -> tuple[int, int]:
    """Return the ticks that all processors have counted, and how many a hypervisor took away."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(ticks[:8]), ticks[7]


def say(text: str) -> None:
    """Tell whoever waits how far we are."""
    click.echo(text, err=True)


@click.command()
@click.option(
    "--rows",
    multiple=True,
    metavar="PATTERN",
    help=f"Only these: a name or a pattern like 'base-*'. {', '.join(row.name for row in ROWS)}.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds of each row.  [default: 15]")
@click.option("--quick", is_flag=True, help="A short run with small figures, to see that it works.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write every figure there."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Instead of the table, draw the cost of a pair against the number of connections cached.",
)
def main(
    rows: tuple[str, ...],
    rounds: int | None,
    quick: bool,
    json_path: Path | None,
    plot: Path | None,
) -> None:
    """Measure scache against Postfix's own, and print one table.

    Every ratio is ours divided by the reference, smaller is better: the median
    over several rounds in which both are measured in turn, and the spread. The
    reference is Postfix's scache unless the notes name another. "best" divides
    the best rounds of each, "cpu" the processor time of the servers alone.
    "must" and "aim" are what we demand of ourselves.
    """

    def wanted(row: Row) -> bool:
        return not rows or any(fnmatchcase(row.name, pattern) for pattern in rows)

    if not any(map(wanted, ROWS)):
        raise click.BadParameter("no row has such a name", param_hint="--rows")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the servers inherit it
    with tempfile.TemporaryDirectory(prefix="scache-bench-") as directory:
        try:
            load = Load(Path(directory))
        except NotRun as reason:
            raise click.ClickException(str(reason)) from None
        bench = (
            Bench(load, rounds or 2, 50, 20, cached=600, messages=20)
            if quick
            else Bench(load, rounds or 15, 200, 50, cached=18_000, messages=2_000)
        )
        if plot:
            draw(curves(bench, say), plot)
            return
        total, stolen = processor_time()
        results = measure_rows(bench, wanted, say)
        total_after, stolen_after = processor_time()
    click.echo(render(results))
    about = machine() | {"stolen": f"{(stolen_after - stolen) / (total_after - total):.1%}"}
    if quick:
        click.echo("\nA quick run shows that everything runs; its figures mean little.")
    click.echo("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if json_path:
        document = {"machine": about, "rows": [result.as_json() for result in results]}
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if any(result.note.startswith("failed") for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/bench")
