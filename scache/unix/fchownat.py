"""Changing the owner of a file through an O_PATH descriptor (fchownat(2)).

fchown(2), and so `os.chown`, refuses such a descriptor. Its path in /proc needs a mounted /proc.
"""

from __future__ import annotations

import ctypes
import os

_AT_EMPTY_PATH = 0x1000

_fchownat = ctypes.CDLL(None, use_errno=True).fchownat
_fchownat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int)


def chown(handle: int, uid: int, gid: int) -> None:
    """Set the owner of the file that a descriptor names; -1 keeps the user or group."""
    if _fchownat(handle, b"", uid % 2**32, gid % 2**32, _AT_EMPTY_PATH):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
