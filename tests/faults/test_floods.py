"""Floods make few lines of log, and stop no other port."""

from __future__ import annotations

import signal
import struct
from pathlib import Path

import trio

from .programs import open_both

COUNT = 200


async def test_bad_front_ends_make_twenty_lines_and_a_count(tmp_path: Path) -> None:
    with trio.fail_after(50):
        async with open_both(tmp_path, f"vhost-user:{tmp_path}/device") as both:
            host = await both.host("echo=echo")
            for number in range(COUNT):
                async with await trio.open_unix_socket(f"{tmp_path}/device") as bad:
                    await bad.send_all(struct.pack("=III", 1, 1, 5000 + number))
                    assert await bad.receive_some() == b""
            await both.mount()
            await both.until_connected()
            await host.kill(signal.SIGTERM)
            turned_away = "vconfs: front-end turned away: "
            assert sum(line.startswith(turned_away) for line in host.lines) == 20
            left_out = f"vconfs: {COUNT - 20} more lines like this one were left out: "
            assert sum(line.startswith(left_out) for line in host.lines) == 1
            assert [line for line in host.lines if "front-end" not in line] == [
                f"vconfs: listening on {both.url}"
            ]
