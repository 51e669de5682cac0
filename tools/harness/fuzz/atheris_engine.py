"""The same by atheris, in a process of its own, as libFuzzer ends it; arguments are libFuzzer's."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

with atheris.instrument_imports(include=["scache.protocol"]):
    from fuzzing.target import check

if __name__ == "__main__":
    atheris.enabled_hooks.add("RegEx")
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
