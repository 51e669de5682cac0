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

from harness.display import progress
from harness.fuzz.hypothesis_engine import HANG, MAX_INPUT, TOKENS, fuzz
from harness.fuzz.inputs import read
from harness.fuzz.recorded_inputs import record
from harness.fuzz.target import check

STEPS = 400
"""Random requests that are recorded in each mode, to make the first inputs of."""


def fuzz_with_hypothesis(seeds: list[bytes], inputs: int, seed: int, keep: Path) -> None:
    """Fuzz with Hypothesis; raise SystemExit if there is a bug."""
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


def fuzz_with_atheris(seeds: list[bytes], inputs: int, seed: int, keep: Path) -> None:
    """Fuzz with atheris, in a process of its own; raise SystemExit if there is a bug."""
    with tempfile.TemporaryDirectory(prefix="scache-fuzz-") as name:
        corpus, words = Path(name, "corpus"), Path(name, "words")
        corpus.mkdir()
        for at, data in enumerate(seeds):
            Path(corpus, str(at)).write_bytes(data)
        tokens = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS)
        words.write_text("".join(f'"{token}"\n' for token in tokens))
        options = {"runs": inputs, "seed": seed or 1, "timeout": int(HANG), "dict": words}
        options |= {"max_len": 2 * MAX_INPUT, "artifact_prefix": f"{keep}{os.sep}"}
        command = [sys.executable, "-P", "-m", "harness.fuzz.atheris_engine", str(corpus)]
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
    help="auto: atheris if it is installed, else Hypothesis. own: the same as hypothesis.",
)
@click.option(
    "--keep",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir()),
    help="Write an input that shows a bug to this directory.  [default: that of temporary files]",
)
def main(files: tuple[Path, ...], inputs: int, seed: int, engine: str, keep: Path) -> None:
    """Fuzz both halves of the protocol, beginning with recorded exchanges.

    Exits with 1 at the first bug, and writes its input to a file. With FILES,
    runs the inputs in these files again.
    """
    for file in files:
        click.echo(f"{file}: {read(file.read_bytes())}")
        check(file.read_bytes())
    if files:
        return
    seeds = record(seed, STEPS)
    click.echo(f"{len(seeds)} inputs recorded to begin with", err=True)
    if engine == "atheris" or (engine == "auto" and find_spec("atheris")):
        fuzz_with_atheris(seeds, inputs, seed, keep)
    else:
        fuzz_with_hypothesis(seeds, inputs, seed, keep)


if __name__ == "__main__":
    main(prog_name="tools/fuzz")
