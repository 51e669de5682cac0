"""A FUSE file system whose server can be stopped, so that every access to it blocks.

The module is also the program of the server. It serves one file, ``file``, in a mount namespace of
its own, which ends with the process. Tests open the file through ``/proc/PID/root``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from pathlib import Path

_HEADER = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")


class _Request(IntEnum):
    """Numbers of requests (Linux, include/uapi/linux/fuse.h)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    POLL = 40
    BATCH_FORGET = 42


_ROOT, _FILE = 1, 2
_NEW_NAMESPACE, _NEW_USER = 0x20000, 0x10000000
_END_WITH_PARENT = 1
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14


class FuseServer:
    """A FUSE server in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self._process = process
        self._root = Path(f"/proc/{process.pid}/root{directory}")

    def open(self, name: str = "file") -> int:
        """Open a file of the server and return its descriptor; ``.`` is the directory."""
        return os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC)

    def open_in(self, stack: ExitStack, name: str = "file") -> int:
        """Return a descriptor that the stack closes; close the server first.

        Meanwhile the test cannot start a process, because closing inherited descriptors blocks.
        """
        descriptor = self.open(name)
        stack.callback(close_file, descriptor)
        return descriptor

    def stop(self) -> None:
        """Stop the server, so that it does not answer."""
        self._process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self._process.pid}/stat")
        while status.read_bytes().rpartition(b")")[2].split()[0] != b"T":
            time.sleep(0.001)

    def close(self) -> None:
        """End the server; from then on the kernel answers with an error."""
        self._process.kill()
        self._process.wait()


@contextmanager
def fuse_server(directory: Path) -> Iterator[FuseServer | None]:
    """Run a server in a new directory; yield None if this machine does not allow FUSE."""
    directory.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.fuse", str(directory)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            is_mounted = process.stdout.readline() == b"mounted\n"
            yield FuseServer(process, directory) if is_mounted else None
        finally:
            process.kill()


def close_file(descriptor: int) -> None:
    """Close a file of a server that may have ended, which closes it with an error."""
    with suppress(OSError):
        os.close(descriptor)


def _mount(directory: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    uid, gid = os.getuid(), os.getgid()
    check(libc.prctl(_END_WITH_PARENT, signal.SIGKILL))  # even while it is stopped
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    check(libc.unshare(_NEW_NAMESPACE | (_NEW_USER if uid else 0)))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    check(libc.mount(None, b"/", None, _PRIVATE | _RECURSIVE, None))
    options = f"fd={device},rootmode=40000,user_id={uid},group_id={gid},allow_other"
    check(libc.mount(b"tests", directory.encode(), b"fuse.tests", 0, options.encode()))
    return device


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int, body: bytes) -> bytes | int:
    """Return the body of a reply, or an error number."""
    match opcode:
        case _Request.INIT:
            return struct.pack("<4I2H2I2HI", 7, 31, 65536, 0, 12, 9, 65536, 1, 1, 0, 0).ljust(64)
        case _Request.LOOKUP:
            if body != b"file\0":
                return errno.ENOENT
            return struct.pack("<4Q2I", _FILE, 0, 0, 0, 0, 0) + _attributes(_FILE)
        case _Request.GETATTR:
            return struct.pack("<Q2I", 0, 0, 0) + _attributes(node)
        case _Request.OPEN | _Request.OPENDIR:
            return bytes(16)
        case _Request.POLL:
            return bytes(8)
        case _Request.RELEASE | _Request.FLUSH | _Request.RELEASEDIR | _Request.ACCESS:
            return b""
        case _:
            return errno.ENOSYS


def _serve(device: int) -> None:
    while True:
        request = os.read(device, 1 << 17)
        _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
        if opcode in (_Request.FORGET, _Request.BATCH_FORGET, _Request.INTERRUPT):
            continue
        answer = _answer(opcode, node, request[_HEADER.size :])
        error, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(device, _REPLY.pack(_REPLY.size + len(body), error, unique) + body)


if __name__ == "__main__":
    mounted = _mount(sys.argv[1])
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    _serve(mounted)
