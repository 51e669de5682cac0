"""A user namespace that maps only two users and two groups."""

from __future__ import annotations

import sys

OVERFLOW = 65534
"""The id of every unmapped user and group in the namespace; it is also mapped itself."""

INNER_ROOT = 100_000
"""The user and group that are root in the namespace. Root of the tests is OVERFLOW."""

_SCRIPT = f"""
import ctypes, os, sys
reader, writer = os.pipe()
process = os.getpid()
if os.fork() == 0:
    os.read(reader, 1)
    for kind in ("uid", "gid"):
        with open(f"/proc/{{process}}/{{kind}}_map", "w") as ids:
            ids.write("0 {INNER_ROOT} 1\\n{OVERFLOW} 0 1\\n")
    os._exit(0)
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):  # CLONE_NEWUSER
    sys.exit("cannot make a user namespace: " + os.strerror(ctypes.get_errno()))
os.write(writer, b".")
os.wait()
os.execvp(sys.argv[1], sys.argv[1:])
"""

PREFIX = (sys.executable, "-c", _SCRIPT)
"""A command that runs another one in the namespace, for root: as user and group OVERFLOW, without
capabilities. The files of root belong to that user."""
