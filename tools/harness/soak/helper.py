"""A helper process of a soak, and the pipe to it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from typing import Any

_spawn = multiprocessing.get_context("spawn")


class Helper:
    """A process that runs a function with the other end of a pipe as its last argument."""

    def __init__(self, stack: ExitStack, target: Callable[..., None], *arguments: object) -> None:
        """Start the process; it is killed when the stack is closed."""
        self.pipe: Pipe
        self.pipe, theirs = _spawn.Pipe()
        self._process: BaseProcess = _spawn.Process(target=target, args=(*arguments, theirs))
        self._process.start()
        theirs.close()
        stack.callback(self._end)

    def ask(self, order: str) -> Any:  # noqa: ANN401 - each function has its own reply
        """Send an order and return the reply."""
        self.pipe.send(order)
        return self.pipe.recv()

    def _end(self) -> None:
        self.pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
