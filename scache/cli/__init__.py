"""The command ``scache``: the entry point of its process, which imports next to nothing.

Importing the subcommands takes a tenth of a second; Ctrl-C must not print a traceback meanwhile.
"""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command line of this process; return its exit code.

    From here on SIGINT ends the process at once, as SIGTERM does: Python discards a
    KeyboardInterrupt that is raised while a generator is closed or an object is destroyed.
    If SIGINT was ignored at the start (nohup, a script's ``&``), it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A reader that closes the pipe early (scache --help | head) ends the process silently.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    from scache.cli.main import run

    return run()
