"""The function that the engines call with each input.

Any exception that comes out of `check` is a bug, also a ValueError, an IndexError or a
RecursionError. Two exceptions are expected and caught: ProtocolError (the peer broke the rules)
and, in a client, Refused (the daemon refused an administrator's request).
"""

from __future__ import annotations

from harness.fuzz.client_check import check_client
from harness.fuzz.inputs import CLIENT, read
from harness.fuzz.server_check import check_server


def check(data: bytes) -> None:
    """Run an input through one half of the protocol; raise InvariantError if one is violated."""
    parsed = read(data)
    if parsed.flags & CLIENT:
        check_client(parsed)
    else:
        check_server(parsed)
