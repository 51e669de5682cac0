"""The type of an open file, without a request to its file server (statx(2)).

fstat(2) of a file on a FUSE or network file system may wait forever for its server.
"""

from __future__ import annotations

import ctypes
import os

_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE = 1


class _Statx(ctypes.Structure):
    """The beginning of struct statx, and room for the rest (Linux, include/uapi/linux/stat.h)."""

    _fields_ = (
        ("head", ctypes.c_uint8 * 28),
        ("mode", ctypes.c_uint16),
        ("between", ctypes.c_uint8 * 98),
        ("device_major", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 124),
    )


_statx = ctypes.CDLL(None, use_errno=True).statx
_statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.POINTER(_Statx),
)


def type_of(descriptor: int) -> tuple[int, int]:
    """Return the type of a file, as in ``st_mode``, and the major number if it is a device.

    The type is 0 for a kernel object that is not a file, such as an eventfd. Raises OSError
    if the descriptor is not open.
    """
    answer = _Statx()
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _statx(descriptor, b"", flags, _STATX_TYPE, ctypes.byref(answer)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return answer.mode, answer.device_major
