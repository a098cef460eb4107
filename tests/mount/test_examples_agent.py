"""QEMU's own guest agent on a port, here on this machine, mostly by examples/guest-agent.sh.

It is asked nothing that could change anything.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from .conftest import OpenMount, program
from .examples import EXAMPLES, next_line

pytestmark = pytest.mark.skipif(not shutil.which("qemu-ga"), reason="needs qemu-guest-agent")


async def send(host: trio.SocketStream, command: str, **arguments: object) -> None:
    question = {"execute": command, "arguments": arguments}
    await host.send_all(json.dumps(question).encode() + b"\n")


async def ask(host: trio.SocketStream, command: str, **arguments: object) -> Any:
    await send(host, command, **arguments)
    return json.loads(await next_line(host))["return"]


async def test_the_agent_answers_and_cannot_be_made_to_change_anything(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    async with mounted(f"agent=unix:{tmp_path}/sock") as it:
        script = [*shell, str(EXAMPLES / "guest-agent.sh"), str(it.path / "by-name/agent")]
        async with program("setsid", *script) as running:
            for _ in range(2):  # the host comes, and comes again
                async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                    assert await ask(host, "guest-ping") == {}
                    info = await ask(host, "guest-info")
            commands = {
                command["name"]: command["enabled"] for command in info["supported_commands"]
            }
            assert commands["guest-get-osinfo"]
            assert not commands["guest-shutdown"]
            assert not commands["guest-file-write"]
            running.terminate()
            assert await running.wait() == 0


async def test_a_large_answer_arrives_whole_though_the_host_throttles(
    mounted: OpenMount, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20))
    async with mounted(f"agent=unix:{tmp_path}/sock,host-limit=4096", throttle="block") as it:
        port = str(it.path / "by-name/agent")
        places = ("-t", str(tmp_path), "-f", f"{tmp_path}/pid")
        async with program("qemu-ga", "-m", "virtio-serial", "-p", port, *places) as running:
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                handle = await ask(host, "guest-file-open", path=str(large))
                question = {"handle": handle, "count": 1 << 20}
                await send(host, "guest-file-read", **question)
                await it.until(lambda: it.port().host_throttled)  # we do not read
                text = b""
                while not text.endswith(b"\n"):
                    text += await host.receive_some()
                answer = json.loads(text)["return"]
                assert base64.b64decode(answer["buf-b64"]) == large.read_bytes()
                assert await ask(host, "guest-ping") == {}
            running.terminate()
            assert await running.wait() == 0
