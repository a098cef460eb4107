"""A quick run to find what has become slow: `python -m benchmarks.quick [--store]`.

It prints what vconfs costs as a ratio to what its peers cost in the same half minute: more is
worse. `ratios.json` has those that a test compares with; --store writes them anew.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks._peers import LIBFUSE, Served, prepared, serve
from benchmarks.costs import measure as measure_blocks
from benchmarks.many_ports import EMBEDDED, timed
from benchmarks.measure import HERE, Samples, ask, one_cpu
from benchmarks.mounting import IMPORTS, PYTHON
from benchmarks.mounting import measure as measure_steps

#: How much worse than stored a ratio may be. CPU times of a busy machine differ by almost twice.
BOUND: Final = 2.5
_OURS: Final = (EMBEDDED, "vhost-user")
_BLOCKS: Final = {"4 KiB": 4096, "128 KiB": 128 << 10}
_FILE: Final = HERE / "ratios.json"
_REPETITIONS: Final = 3
_ROUNDS: Final = "1000"
_PORTS: Final = 64


def measure() -> dict[str, float]:
    """Return the ratios of a run."""
    samples: Samples = defaultdict(list)
    with prepared() as (place, client), one_cpu():
        for _ in range(_REPETITIONS):
            for peer in (LIBFUSE, *_OURS):
                with serve(peer, place) as served:
                    _add_data(client, peer, served, samples)
            samples["start", PYTHON].append(timed([sys.executable, "-c", IMPORTS]))
            for step, seconds in measure_steps(EMBEDDED, place, _PORTS).items():
                samples[step, EMBEDDED].append(seconds)
    return _ratios({key: median(values) for key, values in samples.items()})


def _add_data(client: Path, peer: str, served: Served, samples: Samples) -> None:
    for name, block in _BLOCKS.items():
        for direction in ("write", "read"):
            rate, cost = measure_blocks(client, direction, served, block)
            samples[f"time of {direction} {name}", peer].append(1 / rate)
            samples[f"CPU time of {direction} {name}", peer].append(cost.seconds / rate)
    middle, _ = ask(str(client), "pingpong", str(served.folder / "echo"), _ROUNDS)
    samples["ping-pong", peer].append(middle)


def _ratios(medians: Mapping[tuple[str, str], float]) -> dict[str, float]:
    ratios = {}
    for (row, peer), value in medians.items():
        if (other := medians.get((row, LIBFUSE))) and peer != LIBFUSE:
            ratios[f"{row}, {peer} / {LIBFUSE}"] = value / other
        elif peer == EMBEDDED:
            ratios[f"{row}, {_PORTS} ports / {PYTHON}"] = value / medians["start", PYTHON]
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def stored() -> dict[str, float]:
    """Return the ratios that are stored."""
    ratios: dict[str, float] = json.loads(_FILE.read_text(encoding="utf-8"))
    return ratios


def worse(measured: Mapping[str, float], known: Mapping[str, float]) -> dict[str, str]:
    """Return which ratios are worse than the known ones by more than BOUND, and by how much."""
    return {
        name: f"{ratio}, and it was {known[name]}"
        for name, ratio in measured.items()
        if ratio > BOUND * known[name]
    }


if __name__ == "__main__":
    ratios = measure()
    print(*(f"{ratio:8.2f}  {name}" for name, ratio in ratios.items()), sep="\n")
    if "--store" in sys.argv[1:]:
        _FILE.write_text(json.dumps(ratios, indent=1) + "\n", encoding="utf-8")
