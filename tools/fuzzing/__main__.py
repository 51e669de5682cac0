"""The command line of tools/fuzz."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import traceback
from importlib.util import find_spec
from pathlib import Path

import click

from fuzzing.engine import HANG, MAX_INPUT, TOKENS, Failure, Outcome, fuzz
from fuzzing.recording import record
from fuzzing.target import check, read

STEPS = 400
"""Requests of a real history, in each mode, that inputs are made of to begin with."""


def say(text: str) -> None:
    """Tell whoever waits how far we are."""
    click.echo(text, err=True)


def replay(files: tuple[Path, ...]) -> None:
    """Try inputs that were kept."""
    for file in files:
        data = file.read_bytes()
        click.echo(f"{file}: {read(data)}")
        check(data)


def own(seeds: list[bytes], inputs: int, seed: int, keep: Path) -> None:
    """Fuzz with Hypothesis; SystemExit if there is a bug."""
    outcome = fuzz(seeds, inputs, seed, say)
    report(outcome)
    if outcome.failure is not None:
        keep_failure(outcome.failure, keep)
        raise SystemExit(1)


def report(outcome: Outcome) -> None:
    """Print what it came to."""
    click.echo(
        f"{outcome.inputs} inputs in {outcome.seconds:.0f} s"
        f" ({outcome.inputs / max(outcome.seconds, 1e-9):.0f} a second),"
        f" the slowest took {outcome.slowest * 1e3:.0f} ms:"
        f" {'a bug' if outcome.failure else 'no bug'}"
    )


def keep_failure(failure: Failure, keep: Path) -> None:
    """Write the input into a file, and say how to try it again."""
    traceback.print_exception(failure.error)
    file = keep / "scache-fuzz-failure"
    file.write_bytes(failure.data)
    click.echo(f"{read(failure.data)}\nkept: tools/fuzz {file}", err=True)


def guided(seeds: list[bytes], inputs: int, seed: int, keep: Path) -> None:
    """Fuzz with atheris; SystemExit if there is a bug."""
    with tempfile.TemporaryDirectory(prefix="scache-fuzz-") as name:
        corpus, words = Path(name, "corpus"), Path(name, "words")
        corpus.mkdir()
        for at, data in enumerate(seeds):
            Path(corpus, str(at)).write_bytes(data)
        words.write_text(
            "".join(
                f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in token)}"\n'
                for token in TOKENS
                if token
            )
        )
        options = [f"-runs={inputs}", f"-seed={seed or 1}", f"-timeout={HANG:.0f}"]
        options += [
            f"-max_len={2 * MAX_INPUT}",
            f"-dict={words}",
            f"-artifact_prefix={keep}{os.sep}",
        ]
        command = [sys.executable, "-P", "-m", "fuzzing.guided", *options, str(corpus)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
        assert process.stderr is not None
        done, reached = "", ""
        for line in process.stderr:
            if match := re.match(r"#\d+\s.*cov: (\d+)", line):
                reached = match[1]
            if line.startswith(("#", "INFO")):
                if "pulse" in line:
                    say(line.rstrip())
            elif match := re.match(r"Done (\d+) runs in (\d+)", line):
                done = f"{match[1]} inputs in {match[2]} s"
            elif not done:
                say(line.rstrip())
        process.wait()
    if process.returncode or not done:
        click.echo(f"a bug, or it could not run (exit code {process.returncode}): see above")
        raise SystemExit(1)
    click.echo(f"{done}, {reached} reached, atheris: no bug")


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
    if files:
        replay(files)
        return
    seeds = record(seed, STEPS)
    say(f"{len(seeds)} inputs recorded to begin with")
    if engine == "atheris" or (engine == "auto" and find_spec("atheris")):
        guided(seeds, inputs, seed, keep)
    else:
        own(seeds, inputs, seed, keep)


if __name__ == "__main__":
    main(prog_name="tools/fuzz")
