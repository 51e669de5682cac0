"""The command line of tools/fuzz."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

import click
from common import progress

from fuzzing.engine import HANG, MAX_INPUT, TOKENS, fuzz
from fuzzing.recording import record
from fuzzing.target import check, read

STEPS = 400
"""Requests of a real history, in each mode, that inputs are made of to begin with."""


def own(seeds: list[bytes], inputs: int, seed: int, keep: Path) -> None:
    """Fuzz with Hypothesis; SystemExit if there is a bug."""
    began = time.monotonic()
    with progress() as shown:
        task = shown.add_task("inputs", total=inputs)

        def on_input(tried: int) -> None:
            shown.update(task, completed=tried, refresh=not tried % 100)

        outcome = fuzz(seeds, inputs, seed, on_input)
    seconds = max(time.monotonic() - began, 1e-9)
    click.echo(
        f"{outcome.inputs} inputs in {seconds:.0f} s ({outcome.inputs / seconds:.0f} a second),"
        f" the slowest took {outcome.slowest * 1e3:.0f} ms:"
        f" {'a bug' if outcome.error else 'no bug'}"
    )
    if outcome.error is not None:
        traceback.print_exception(outcome.error)
        file = keep / "scache-fuzz-failure"
        file.write_bytes(outcome.data)
        click.echo(f"{read(outcome.data)}\nkept: tools/fuzz {file}", err=True)
        raise SystemExit(1)


def guided(seeds: list[bytes], inputs: int, seed: int, keep: Path) -> None:
    """Fuzz with atheris, in a process that libFuzzer ends; SystemExit if there is a bug."""
    with tempfile.TemporaryDirectory(prefix="scache-fuzz-") as name:
        corpus, words = Path(name, "corpus"), Path(name, "words")
        corpus.mkdir()
        for at, data in enumerate(seeds):
            Path(corpus, str(at)).write_bytes(data)
        tokens = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS)
        words.write_text("".join(f'"{token}"\n' for token in tokens))
        options = {"runs": inputs, "seed": seed or 1, "timeout": int(HANG), "dict": words}
        options |= {"max_len": 2 * MAX_INPUT, "artifact_prefix": f"{keep}{os.sep}"}
        command = [sys.executable, "-P", "-m", "fuzzing.guided", str(corpus)]
        command += [f"-{option}={value}" for option, value in options.items()]
        code = subprocess.run(command, check=False).returncode
    click.echo(f"atheris: {f'a bug, or it could not run (exit code {code})' if code else 'no bug'}")
    if code:
        raise SystemExit(1)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--inputs", type=click.IntRange(min=1), default=50_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option(
    "--engine",
    type=click.Choice(["auto", "atheris", "hypothesis", "own"]),
    default="auto",
    show_default=True,
    help="auto: atheris if it is installed, else Hypothesis, which has the name own as well.",
)
@click.option(
    "--keep",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir()),
    help="Where an input that shows a bug is written.  [default: the directory for such things]",
)
def main(files: tuple[Path, ...], inputs: int, seed: int, engine: str, keep: Path) -> None:
    """Fuzz both halves of the conversation, beginning with recorded exchanges.

    Exits with 1 at the first bug, and keeps its input. With FILES, tries such
    inputs again instead.
    """
    for file in files:
        click.echo(f"{file}: {read(file.read_bytes())}")
        check(file.read_bytes())
    if files:
        return
    seeds = record(seed, STEPS)
    click.echo(f"{len(seeds)} inputs recorded to begin with", err=True)
    if engine == "atheris" or (engine == "auto" and find_spec("atheris")):
        guided(seeds, inputs, seed, keep)
    else:
        own(seeds, inputs, seed, keep)


if __name__ == "__main__":
    main(prog_name="tools/fuzz")
