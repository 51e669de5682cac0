"""Code that runs as another user, in a child process."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

UID, GID, GROUP = 54321, 54322, 54323
"""Ids that this machine does not use."""

_READS = "+dac_read_search"
AS_USER = (
    *("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups"),
    *("--inh-caps", _READS, "--ambient-caps", _READS),
)
"""Words that run a command as this user, who may read every file."""

CAP_SYS_NICE = 23
MAY_RAISE_PRIORITY = bool(
    int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    >> CAP_SYS_NICE
    & 1
)
"""True if this process may raise its priority."""


def as_user(
    do: Callable[[], T], groups: Sequence[int] = (), *, uid: int = UID, gid: int = GID
) -> T:
    """Call a function in a child process with these ids; return its result or raise its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            outcome: tuple[T | None, Exception | None]
            try:
                outcome = (do(), None)
            except Exception as failure:  # noqa: BLE001 - it is raised in the parent
                outcome = (None, failure)
            os.write(writer, pickle.dumps(outcome))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]
