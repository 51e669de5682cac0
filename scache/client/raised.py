"""The source of an exception: a call of a C function, or a signal handler meanwhile."""

from __future__ import annotations

from collections.abc import Callable


def is_raised_by_call(error: BaseException, function: Callable[..., object] | None = None) -> bool:
    """Return True if a C function that the catching function called raised the error.

    With ``function``, a Python function: return True if a C function that it called raised the
    error. Return False if a signal handler or another Python function raised it, as in the case of
    a TimeoutError from a handler of SIGALRM.
    """
    place = error.__traceback__
    if place is not None and function is not None:
        place = place.tb_next
        if place is None or place.tb_frame.f_code is not getattr(function, "__code__", None):
            return False
    return place is not None and place.tb_next is None
