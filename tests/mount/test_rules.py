"""Rules of a mount: they hold as soon as a port has its name, and follow its renaming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from attrs import evolve

from tests.support.threads import in_thread
from vconfs.guest.port import PortOptions

from .conftest import OpenMount

RULES = """
[[port]]
name = "shared.*"
mode = "0640"
gid = 65534
exclusive = true
limit = 4096

[[port]]
name = "modem"
tty = true

[[port]]
id = 0
tty = false
"""


@pytest.mark.guest_side("a host end has its own limits, and no ptys beside its ports")
async def test_each_port_gets_what_its_rules_say(mounted: OpenMount) -> None:
    specs = "plain=echo,console", "shared.a=echo", "modem=echo"
    async with mounted(*specs, rules=RULES) as it:
        await it.until(lambda: it.port(2).pty)
        assert await it.run("stat -c '%a %g' vcon*") == "600 0\n640 65534\n600 0\n"
        assert [it.port(port_id).limit for port_id in range(3)] == [1 << 20, 4096, 1 << 20]
        assert [it.port(port_id).options.exclusive for port_id in range(3)] == [False, True, False]
        assert (it.port(0).pty, it.port(0).hvc) == ("", None)


KEPT = """
[[port]]
name = "kept"
uid = 65534
mode = "0620"
cache = true
throttle = "block"
wait = true
"""


async def test_a_rule_keeps_data_over_a_close_and_gives_the_port_away(mounted: OpenMount) -> None:
    async with mounted("kept=echo", "dropped=echo", rules=KEPT) as it:
        for port_id in range(2):
            queued = f"getfattr --only-values -n user.queued vcon{port_id}"
            await it.run(
                f"exec 3<>{it.file(port_id)}; echo data >&3; read -r x <&3; "
                f"echo more >&3; until [ $({queued}) = 5 ]; do :; done"
            )
        assert [it.port(port_id).queued for port_id in range(2)] == [5, 0]
        options = evolve(it.port(0).options, limit=None)  # a host end sets it
        assert options == PortOptions(cache=True, throttle="block", wait=True)
        assert await it.run("stat -c '%u %a' vcon0") == "65534 620\n"
        it.manager.rename(it.port(), b"other")
        assert await it.run("stat -c '%u %a' vcon0") == f"{os.getuid()} 600\n"


@pytest.mark.guest_side("a host end has no ptys beside its ports")
async def test_a_rule_gives_the_pty_away(mounted: OpenMount) -> None:
    async with mounted("kept=echo,console", rules=KEPT) as it:
        await it.until(lambda: it.port().pty)
        assert await it.run("stat -L -c '%u %a' hvc0") == "65534 620\n"
        it.manager.rename(it.port(), b"other")
        assert await it.run("stat -L -c '%u %a' hvc0") == f"{os.getuid()} 600\n"


async def test_a_renamed_port_gets_the_options_of_its_new_name(mounted: OpenMount) -> None:
    async with mounted("other=echo", "x=null", rules=RULES) as it:
        it.host.rename(1, b"shared.late")
        await it.until(lambda: it.port(1).options.exclusive)
        assert await in_thread(lambda: it.file(1).stat().st_mode & 0o777) == 0o640
        it.host.rename(1, b"x")
        await it.until(lambda: not it.port(1).options.exclusive)
        assert await in_thread(lambda: it.file(1).stat().st_mode & 0o777) == 0o600


async def test_a_reader_stops_waiting_for_a_host_when_the_rule_is_gone(
    mounted: OpenMount, tmp_path: Path
) -> None:
    rules = '[[port]]\nname = "patient"\nwait = true'
    async with mounted(f"patient=unix:{tmp_path}/sock", rules=rules) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.run, "cat $P")
            await it.until(lambda: it.port()._inbox.turn.locked())
            it.manager.rename(it.port(), b"hasty")


def test_a_wrong_file_is_a_usage_error_that_names_the_line(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("[[port]]\nid = 1\nmood = 1\n")
    words: list[str | Path] = [sys.executable, "-m", "vconfs", "mount", "--rules", rules, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{rules}:3: mood: unknown key" in done.stderr
    assert len(done.stderr.splitlines()) == 1
