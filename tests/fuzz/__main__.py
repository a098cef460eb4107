"""Fuzzes: `python -m tests.fuzz [TARGET...] [--time SECONDS] [--seed N]`, or shows one input.

Coverage guides the search (atheris, which is libFuzzer for Python: `pip install -e ".[fuzz]"`).
Inputs that reach new code are kept in .cache/fuzz/TARGET/corpus for the next run, those that crash
in .cache/fuzz/TARGET/crashes; the repository's own are in tests/fuzz/corpus/TARGET. A crash that is
mended goes there, too: each input is run by tests/fuzz/test_targets.py.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .every import EVERY
from .target import CORPUS

CACHE = Path(".cache/fuzz")
#: Seconds between two lines of progress.
_PROGRESS = 10
#: Seconds that one input may take, and MiB that the process may have.
_INPUT_SECONDS, _MEMORY = 10, 1024
_LENGTH_MAX = 4096
_STATUS = re.compile(r"#(\d+)\s.*cov: (\d+).*corp: (\d+)/")


def main() -> int:
    words = _arguments()
    unknown = [name for name in words.targets if name not in EVERY]
    if unknown:
        sys.exit(f"unknown target {unknown[0]}: the targets are {', '.join(EVERY)}")
    if words.input:
        return _run_inputs(words.targets, words.input)
    names = words.targets or list(EVERY)
    seconds = words.time / len(names) if words.total else words.time
    failed = [name for name in names if not _fuzz(name, seconds, words.seed)]
    print(f"fuzz: {len(names) - len(failed)} of {len(names)} targets without a crash", flush=True)
    return len(failed) > 0


def _arguments() -> Namespace:
    parser = ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: every target")
    parser.add_argument("--time", type=float, default=60, help="seconds for each target (60)")
    parser.add_argument("--total", action="store_true", help="--time is for all targets together")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1 << 31))
    parser.add_argument("--input", nargs="+", type=Path, help="run these inputs of one target")
    return parser.parse_args()


def _run_inputs(names: Sequence[str], files: Sequence[Path]) -> int:
    if len(names) != 1:
        sys.exit("--input needs one target")
    for file in files:
        print(f"{names[0]} {file}", flush=True)
        EVERY[names[0]](file.read_bytes())
    return 0


def _fuzz(name: str, seconds: float, seed: int) -> bool:
    """Fuzz one target; return False if it crashed."""
    corpus, crashes = CACHE / name / "corpus", CACHE / name / "crashes"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    print(f"fuzz: {name}, seed {seed}, {seconds:.0f} s", flush=True)
    options = {
        "seed": seed,
        "max_total_time": max(1, round(seconds)),
        "timeout": _INPUT_SECONDS,
        "rss_limit_mb": _MEMORY,
        "max_len": _LENGTH_MAX,
        "artifact_prefix": f"{crashes}/",
    }
    before = set(crashes.iterdir())
    command = [sys.executable, "-m", "tests.fuzz.engine", name]
    command += [f"-{option}={value}" for option, value in options.items()]
    folders = [str(folder) for folder in (corpus, CORPUS / name) if folder.is_dir()]
    with subprocess.Popen(
        [*command, *folders], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = _follow(name, process.stdout)
    if process.returncode:
        print("\n".join(said[-40:]), flush=True)
        for crash in sorted(set(crashes.iterdir()) - before):
            print(f"fuzz: to repeat it: python -m tests.fuzz {name} --input {crash}", flush=True)
    return process.returncode == 0


def _follow(name: str, lines: IO[str]) -> list[str]:
    """Print a line of progress from time to time; return what the engine says."""
    said: list[str] = []
    status, due = "", time.monotonic() + _PROGRESS
    for line in lines:
        if found := _STATUS.match(line):
            runs, covered, inputs = found.groups()
            status = f"fuzz: {name}: {runs} runs, {covered} branches, {inputs} inputs"
        elif not line.startswith(("INFO:", "WARNING: Failed to find function")):
            said.append(line.rstrip()[:500])
        if time.monotonic() > due and status:
            print(status, flush=True)
            due = time.monotonic() + _PROGRESS
    print(status, flush=True)
    return said


if __name__ == "__main__":
    sys.exit(main())
