"""A command that gets a signal at one chosen event, return or line of its code."""

from __future__ import annotations

import subprocess
import sys
from signal import SIGINT, Signals
from typing import NamedTuple

from tests.support.commands import default_signals, ignoring, run_command

_PROGRAM = """
import os, sys
_, number, left, code, *sys.argv[1:] = sys.argv
left = int(left)

def happened():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), int(number))

def fits(frame):
    return f"{frame.f_code.co_filename}:{frame.f_code.co_name}".endswith(code)

def profile_all(frame, event, argument):
    happened()

def profile_returns(frame, event, argument):
    if event == "return" and fits(frame):
        happened()

def trace_lines(frame, event, argument):
    if event == "line":
        happened()
    return trace_lines if fits(frame) else None

from scache.cli import main
SET
status = main()
sys.settrace(None)
sys.setprofile(None)
sys.stderr.write(f"{left} moments left")
sys.exit(status)
"""


class Moment(NamedTuple):
    """The moment at which a command gets its signal."""

    nth: int
    """The number of the moment, from 1."""
    how: str = "sys.setprofile(profile_all)"
    code: str = ""
    """The end of ``FILE:FUNCTION`` of the code in which moments are counted."""


def at_event(nth: int) -> Moment:
    """Count every call and return, those of the imports included."""
    return Moment(nth)


def at_return(nth: int, code: str) -> Moment:
    """Count the returns of a function; a generator returns at each value and at its end."""
    return Moment(nth, "sys.setprofile(profile_returns)", code)


def at_line(nth: int, code: str) -> Moment:
    """Count the lines that a function executes."""
    return Moment(nth, "sys.settrace(trace_lines)", code)


def interrupted(
    moment: Moment, *command: str, number: Signals = SIGINT, ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``scache`` and send it a signal at this moment; stderr has the number of moments left.

    With ``ignored`` the process starts with the signal ignored.
    """
    program = _PROGRAM.replace("SET", moment.how)
    words = (str(number.value), str(moment.nth), moment.code, *command)
    start = ignoring(number) if ignored else ()
    with default_signals():
        return run_command(*start, sys.executable, "-c", program, *words)
