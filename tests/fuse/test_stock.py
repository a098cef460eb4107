"""The same Operations on our session and on pyfuse3.main() give the same answers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vconfs import fuse

from .probe import PROBES

ROOT = Path(__file__).parents[2]

Answers = dict[str, list[Any]]


@contextmanager
def served(server: str, place: Path) -> Iterator[None]:
    """Serve the tree in a process of its own: pyfuse3 keeps a global state."""
    place.mkdir()
    command = [sys.executable, "-m", "tests.fuse.tree", server, str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
            subprocess.run(["umount", place], check=True, timeout=10)
            assert process.wait(10) == 0
        finally:
            process.kill()
            if str(place) in Path("/proc/self/mountinfo").read_text():
                fuse.unmount(place, lazy=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answers]:
    """All answers, by server."""
    answers: dict[str, Answers] = {}
    for server in ("session", "pyfuse3"):
        place = tmp_path_factory.mktemp(server) / "mnt"
        with served(server, place):
            command = [sys.executable, "-m", "tests.fuse.probe", str(place)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=30)
            answers[server] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("probe", [probe.__name__ for probe in PROBES])
def test_ours_answers_as_pyfuse3_does(both: dict[str, Answers], probe: str) -> None:
    assert both["session"][probe] == both["pyfuse3"][probe]


def test_the_probe_has_seen_what_it_should(both: dict[str, Answers]) -> None:
    answers = both["session"]
    assert answers["attributes"][5] == "ENOENT"
    assert answers["attributes"][7] == repr(b"../some/where \xff")
    assert len(ast.literal_eval(answers["listings"][1])) == 500
    assert answers["xattrs"][:4] == [repr(b"green"), repr(b""), "ENODATA", repr(b"0 0")]
    assert [answer for answer in answers["xattrs"][8:16] if answer != "None"] == [
        "EEXIST",
        "60000",
        "ENODATA",
        "ENODATA",
        repr(b"two"),
    ]
    assert answers["opening"] == ["ENXIO", "ENOENT", "EISDIR", "ELOOP", "EEXIST"]
    assert answers["changes"][7]["mtime_ns"] == -1
    assert answers["names"][3] == repr(b"27")
    assert answers["forgetting"] == ["500", "1", "500", repr(b"none")]
