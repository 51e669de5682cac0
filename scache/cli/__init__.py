"""The command ``scache``: the entry of its process, which imports next to nothing.

Importing the subcommands takes a tenth of a second, in which Ctrl-C must not become a traceback.
"""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command that the process was started with; return its exit code.

    SIGINT ends the process at once from here on, as SIGTERM does: Python discards a
    KeyboardInterrupt that is raised while a generator is closed or an object is destroyed.
    A process that was started with SIGINT ignored (nohup, a script's ``&``) goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A reader of our output that has seen enough (scache --help | head) ends us, silently.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    from scache.cli.main import run

    return run()
