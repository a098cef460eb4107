"""examples/guest-agent.sh: QEMU's own guest agent on a port, here on this machine.

It is asked nothing that could change anything.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from .conftest import OpenMount, program
from .examples import EXAMPLES, next_line

pytestmark = pytest.mark.skipif(not shutil.which("qemu-ga"), reason="needs qemu-guest-agent")


async def ask(host: trio.SocketStream, command: str) -> Any:
    await host.send_all(json.dumps({"execute": command}).encode() + b"\n")
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
