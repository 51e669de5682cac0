"""The removal of a UNIX socket that a process left behind, before another one listens there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from scache.errors import SocketError


def remove_stale(path: Path, option: str) -> None:
    """Remove a socket on which no process listens; raise SocketError for any other file.

    ``option`` is the option that names another path, for the message.
    """
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise SocketError(
            f"{path} exists and is not a socket: remove it, or choose another {option}"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Do not wait if the backlog is full: that already shows that a process listens.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            _unlink(path, option)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
        except PermissionError as error:
            raise SocketError(
                f"{path} is a socket that this user may not connect to: "
                f"remove it if no daemon uses it, or choose another {option}"
            ) from error
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            raise SocketError(
                f"{path} is a socket of another program: remove it, or choose another {option}"
            ) from error
    raise SocketError(f"another daemon listens on {path}: stop it, or choose another {option}")


def _unlink(path: Path, option: str) -> None:
    """Remove a stale socket; raise SocketError if the directory lets only its owner remove it."""
    try:
        path.unlink()
    except PermissionError as error:
        if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
            raise
        raise SocketError(
            f"the socket {path}, on which no process listens, belongs to another user: "
            f"remove it as root or as that user, or choose another {option}"
        ) from error
