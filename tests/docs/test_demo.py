"""The tour: each command is printed, does what it shows, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from .shell import environment

#: What must be seen, in this order: the end of a command, and what came of it.
SEEN = (
    (r"\$ ls \$M", "by-name\nhvc0\nvcon0\nvcon1\nvcon2\nvcon3\nvcon4"),
    (r"echo hello >&3.*", "hello"),
    (r"cat \$M/vcon1", "from the host"),
    (r"readbytes=15 -", "from the guest"),
    (r"echo more > \$M/vcon2", "bash: .*: No space left on device"),
    (r"readbytes=16 -", "sixteen bytes.."),
    (r'echo "cat ended with \$\?"', "cat ended with 124"),
    (r"echo \$seen", "login:"),
    (r"vconfs watch .*", r"(\S+  connect +vcon1 +org.example.chat\n)?there"),
    (r"\$ vconfs ls \$M", r"PORT .*(\n.*)*vcon4 .* console .*"),
    (r"vconfs host .*", r"vconfs: listening on .*\n0\nLinux"),
    (
        r"echo \$line; done; vconfs ls \$G.*",
        r"vconfs: listening on .*\nhello, web1\nhello, db1\nGUEST .*\ndb1 .*\nweb1 .*",
    ),
    (r"vconfs umount \$M; wait", "\nThat was all; nothing is left mounted."),
)


def test_the_tour(tmp_path: Path) -> None:
    done = subprocess.run(
        ["vconfs", "demo"],
        env={**environment(), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=55,
        check=True,
    )
    rest = done.stdout
    for command, output in SEEN:
        found = re.search(f"{command}\n{output}\n", rest)
        assert found, f"{command}\n--- not followed by:\n{output}\n--- in:\n{rest}"
        rest = rest[found.end() - 1 :]
    assert "Traceback" not in done.stdout
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_tour_that_is_ended_by_a_signal_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        ["env", "--default-signal", "vconfs", "demo"],
        env={**environment(), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    ) as tour:
        try:
            assert tour.stdout is not None
            while b"The ports are files" not in tour.stdout.readline():
                assert tour.poll() is None
            tour.send_signal(number)
            rest = tour.stdout.read()
            assert tour.wait(20) in (-number, 128 + number)
        finally:
            tour.kill()
    assert b"Traceback" not in rest
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert list(tmp_path.iterdir()) == []
