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
from common import prepare, print_table, progress

from benchmark.load import Load
from benchmark.plot import curves, draw
from benchmark.rows import COLUMNS, ROWS
from benchmark.scenarios import Bench, measure
from benchmark.servers import Failed, NotRun


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


@click.command()
@click.option(
    "--rows",
    multiple=True,
    metavar="PATTERN",
    help=f"Only these: a name or a pattern like 'base-*'. {', '.join(row.name for row in ROWS)}.",
)
@click.option("--quick", is_flag=True, help="A short run with small figures, to see that it works.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write every figure there."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Instead of the table, draw the cost of a pair against the number of connections cached.",
)
def main(rows: tuple[str, ...], quick: bool, json_path: Path | None, plot: Path | None) -> None:
    """Measure scache against Postfix's own, and print one table.

    Every ratio is ours divided by the reference, smaller is better: the median
    over several rounds in which both are measured in turn, and the spread. The
    reference is Postfix's scache unless the notes name another. "best" divides
    the best rounds of each, "cpu" the processor time of the servers alone.
    "must" and "aim" are what we demand of ourselves.
    """

    def wanted(name: str) -> bool:
        return not rows or any(fnmatchcase(name, pattern) for pattern in rows)

    if not any(wanted(row.name) for row in ROWS):
        raise click.BadParameter("no row has such a name", param_hint="--rows")
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
        click.echo("\nA quick run shows that everything runs; its figures mean little.")
    click.echo("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if json_path:
        document = {"machine": about, "rows": [result.as_json() for result in results]}
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if any(result.note.startswith("failed") for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/bench")
