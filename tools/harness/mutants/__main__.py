"""The command line of tools/mutants."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from harness.display import print_table, progress
from harness.mutants.mutation import LIST, Mutation, Outcome, Result, read_list, run


@click.command()
@click.argument("words", nargs=-1)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    help="Mutants to test at the same time.  [default: one for each processor]",
)
@click.option(
    "--list",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=LIST,
    help="Read the mutations from this file.  [default: tools/mutations.toml]",
)
def main(words: tuple[str, ...], jobs: int, path: Path) -> None:
    """Break the code in known ways, one at a time, and run the quick tests.

    Each mutation is applied to a copy of the working tree. It is killed if one
    of its tests fails there, and passes without it. With WORDS, only mutations
    with one of them in the name of their file or in their text are tried.

    Exits with 1 unless all mutants are killed.
    """
    mutations = [
        each
        for each in read_list(path)
        if not words or any(word in f"{each.file}\n{each.old}" for word in words)
    ]
    with progress() as shown, ThreadPoolExecutor(jobs) as threads:
        task = shown.add_task("mutants", total=len(mutations))

        def run_one(mutation: Mutation) -> Result:
            result = run(mutation)
            shown.update(task, advance=1, refresh=True)
            return result

        results = [*threads.map(run_one, mutations)]
    rows = [
        (result.outcome.value, mutation.file, mutation.summary, result.detail)
        for mutation, result in zip(mutations, results, strict=True)
    ]
    print_table(("outcome", "file", "line", "test"), rows)
    counts = Counter(result.outcome for result in results)
    click.echo(", ".join(f"{counts[each]} {each.value}" for each in Outcome if counts[each]))
    if counts[Outcome.KILLED] < len(mutations):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="tools/mutants")
