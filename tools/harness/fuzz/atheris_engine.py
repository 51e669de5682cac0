"""The engine that atheris guides by coverage.

It runs in a process of its own, because libFuzzer ends its process. The arguments are libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

with atheris.instrument_imports(include=["scache.protocol"]):
    from harness.fuzz.target import check

if __name__ == "__main__":
    atheris.enabled_hooks.add("RegEx")
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
