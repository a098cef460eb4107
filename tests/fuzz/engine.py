"""Runs one target under atheris, which ends the process: `python -m tests.fuzz.engine TARGET`.

The arguments after the target are libFuzzer's. It prints what it finds on stderr.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["vconfs"], enable_loader_override=False):
    from .every import EVERY


def main() -> None:
    name, *words = sys.argv[1:]
    atheris.Setup([name, *words], EVERY[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
