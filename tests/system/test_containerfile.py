"""The file that an image of the daemon is built from; CI builds the image where it can."""

from __future__ import annotations

import re

import pytest

from scache.settings.declarations import ROOT_SOCKET, SETTINGS
from tests.support.commands import ROOT

TEXT = ROOT.joinpath("tools", "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")

BUILD, FINAL = re.split(r"^(?=FROM )", TEXT, flags=re.MULTILINE)[1:]
"""The instructions of both stages."""


def instructions(stage: str, name: str) -> list[str]:
    """Return the arguments of the instructions of this name."""
    found = re.findall(rf"^{name} (.*)$", stage, re.MULTILINE)
    return [" ".join(arguments.split()) for arguments in found]


@pytest.mark.parametrize("stage", [BUILD, FINAL])
def test_containerfile_begins_with_debian_slim(stage: str) -> None:
    """Both stages have the same Python, whose path is in the environment that is copied."""
    (base,) = instructions(stage, "FROM")
    assert base.split()[0] == "docker.io/library/debian:bookworm-slim"


def test_containerfile_copies_the_files_that_the_build_needs() -> None:
    """Each source is in the checkout, and the build reads no other file."""
    sources = [word for line in instructions(BUILD, "COPY") for word in line.split()[:-1]]
    assert all(ROOT.joinpath(source).exists() for source in sources)
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= {*sources}
    assert {"scache", "migrations", "tools"} <= {*sources}


def test_containerfile_runs_the_daemon_as_an_unprivileged_user() -> None:
    """The user is made in the image, and owns the directory of the socket, which is a volume."""
    (user,) = instructions(FINAL, "USER")
    assert f"useradd --system --uid {user} " in TEXT
    assert instructions(FINAL, "VOLUME") == [str(ROOT_SOCKET.parent)]
    assert instructions(FINAL, "ENTRYPOINT") == ['["scache", "serve"]']


def test_containerfile_checks_the_health_by_ping() -> None:
    """The check and the daemon get the socket from the same variable."""
    (check,) = instructions(FINAL, "HEALTHCHECK")
    assert check.endswith('CMD ["scache", "ping"]')
    (variables,) = instructions(FINAL, "ENV")
    given = dict(variable.split("=", 1) for variable in variables.split())
    assert given["SCACHE_SOCKET"] == str(ROOT_SOCKET)
    known = {setting.variable for setting in SETTINGS}
    assert {name for name in given if name.startswith("SCACHE_")} <= known
