"""Build a release from a clean clone, try its files, and print how to publish them."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.manual import ROOT, blocks
from tests.support.sessions import demonstration

DISTRIBUTION = "scached"


def main() -> int:
    """Make the release; return the exit code."""
    options = _options()
    output: Path = options.output.resolve()
    os.environ.pop("PYTHONPATH", None)  # each environment imports what is installed in it
    if _run("git", "-C", str(ROOT), "status", "--porcelain"):
        _say("there are changes that are not committed: they are not part of the release")
    with TemporaryDirectory(prefix="scache-release-") as name:
        directory = Path(name)
        os.chdir(directory)
        clone = directory / "clone"
        _run("git", "clone", "--quiet", str(ROOT), str(clone))
        version = version_of(clone)
        files = _build(clone, directory, output, version)
        for file in files:
            _try(file, clone, directory / file.suffix[1:], version)
    commit = _run("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()
    sys.stdout.write(announcement(version, commit, files))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/release", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        default=ROOT / "dist",
        help="directory for the files (default: dist in the checkout)",
    )
    return parser.parse_args()


def version_of(clone: Path) -> str:
    """Return the version of a clone; exit unless its changelog has a dated section for it."""
    text = clone.joinpath("scache", "version.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    changelog = clone.joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE
    ):
        sys.exit(f"release: CHANGELOG.md has no section with a date for {version}: write one")
    return str(version)


def _build(clone: Path, directory: Path, output: Path, version: str) -> list[Path]:
    """Build the sdist, and the wheel from it; return both files."""
    _say("building the sdist and the wheel")
    python = _environment(directory / "build", "build")
    _run(python, "-m", "build", "--outdir", str(output), str(clone))
    wheel = output / f"{DISTRIBUTION}-{version}-py3-none-any.whl"
    return [wheel, output / f"{DISTRIBUTION}-{version}.tar.gz"]


def _try(file: Path, clone: Path, directory: Path, version: str) -> None:
    """Install a file into an empty environment, and run the sessions of the README with it."""
    _say(f"trying {file.name}")
    python = _environment(directory / "environment", str(file))
    reported = _run(str(Path(python).with_name("scache")), "--version").strip()
    module = _run(python, "-c", "import scache; print(scache.__file__)")
    if reported != f"scache {version}" or not module.startswith(str(directory)):
        sys.exit(f"release: {file.name} installs {reported}, and Python imports {module}")
    readme = clone.joinpath("README.md").read_text(encoding="utf-8")
    with demonstration(directory, Path(python)) as shell:
        for session in blocks(readme, "console"):
            shell.run(session.text)


def _environment(directory: Path, *packages: str) -> str:
    """Make an environment with these packages; return its interpreter."""
    _run(sys.executable, "-m", "venv", "--without-pip", str(directory))
    python = str(directory / "bin" / "python3")
    _run(sys.executable, "-m", "pip", "--python", python, "install", "-qq", *packages)
    return python


def announcement(version: str, commit: str, files: Sequence[Path]) -> str:
    """Return the files to publish, and the commands that publish them."""
    lines = [f"{DISTRIBUTION} {version}, commit {commit}", ""]
    for file in files:
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        lines += [f"{file}", f"    {len(content):,} bytes", f"    sha256 {digest}"]
    names = " ".join(str(file) for file in files)
    return "\n".join([
        *lines,
        "",
        "Both files were installed, and ran the sessions of the README. To publish them:",
        "",
        f"    git tag -a v{version} -m 'scache {version}' {commit}",
        f"    git push origin v{version}",
        f"    twine upload {names}",
        "",
    ])  # fmt: skip


def _run(*command: str) -> str:
    """Run a command; return its output. Exit with what it has written if it fails."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"release: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _say(text: str) -> None:
    sys.stderr.write(f"release: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
