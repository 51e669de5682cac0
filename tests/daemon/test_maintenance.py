"""The periodic tasks of the daemon."""

from __future__ import annotations

import asyncio

import pytest

from scache.daemon.maintenance import endure


def test_task_that_runs_out_of_memory_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    """The log says what to do; the daemon goes on."""
    calls = []

    async def task(number: int) -> None:
        calls.append(number)
        if len(calls) < 3:
            raise MemoryError

    asyncio.run(endure(task, 7))
    assert calls == [7, 7, 7]
    assert caplog.text.count("out of memory: lower max_bytes") == 2
