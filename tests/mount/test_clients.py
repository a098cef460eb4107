"""Programs that talk to a host over a port for long: agents, ssh, rsync, node, Go."""

from __future__ import annotations

import base64
import getpass
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support import needs

from .conftest import Mounted, OpenMount, program
from .examples import next_line

LONG = bool(os.environ.get("VCONFS_LONG"))
#: How often a host comes to the agent.
VISITS = 100 if LONG else 5
#: How many seconds late a host reads a reply. An agent's write waits 10 seconds for it by default.
LATE = 8 if LONG else 1
#: A reply of the agent to this is 5 MB.
LARGE = 4_000_000


# --- qemu-ga ------------------------------------------------------------------------------


@asynccontextmanager
async def agent(it: Mounted, folder: Path) -> AsyncIterator[trio.Process]:
    """Run QEMU's guest agent on the port; it has to be there until it is ended."""
    needs.programs("qemu-ga")
    async with program("qemu-ga", *agent_options(it, folder)) as running:
        yield running
        assert running.returncode is None
        running.terminate()
        assert await running.wait() == 0


def agent_options(it: Mounted, folder: Path) -> list[str]:
    """The agent's options: the port, and where it keeps its state."""
    port = ["-m", "virtio-serial", "-p", str(it.file())]
    return [*port, "-t", str(folder), "-f", f"{folder}/pid"]


async def send(host: trio.SocketStream, command: str, **arguments: object) -> None:
    question = {"execute": command, "arguments": arguments}
    await host.send_all(json.dumps(question).encode() + b"\n")


async def synchronize(host: trio.SocketStream, number: int) -> None:
    """Throw away what the agent still says to a host before us, as its protocol wants it."""
    await host.send_all(b"\xff")
    await send(host, "guest-sync-delimited", id=number)
    text = b""
    while not text.endswith(b'\xff{"return": %d}\n' % number):
        text = text[-100:] + await host.receive_some()


async def read_file(host: trio.SocketStream, path: Path) -> None:
    """Have the agent answer with a whole file."""
    await send(host, "guest-file-open", path=str(path))
    handle = json.loads(await next_line(host))["return"]
    await send(host, "guest-file-read", handle=handle, count=LARGE)


async def test_an_agent_outlives_hosts_that_come_and_go(mounted: OpenMount, tmp_path: Path) -> None:
    async with (
        mounted(f"agent=unix:{tmp_path}/sock", limit_seconds=50) as it,
        agent(it, tmp_path),
    ):
        for visit in range(VISITS):
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await send(host, "guest-sync", id=visit)
                assert json.loads(await next_line(host)) == {"return": visit}


@pytest.mark.guest_side("a guest keeps what comes for a port that is not open, and is soon full")
@pytest.mark.expect_log("could not be delivered")
async def test_an_agent_outlives_a_host_that_leaves_in_the_middle_of_a_reply(
    mounted: OpenMount, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(LARGE))
    async with (
        mounted(f"agent=unix:{tmp_path}/sock", throttle="block") as it,
        agent(it, tmp_path),
    ):
        for visit in range(2):
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await synchronize(host, visit)
                await read_file(host, large)
                await host.receive_some(1000)
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await synchronize(host, 77)
            await send(host, "guest-ping")
            assert json.loads(await next_line(host)) == {"return": {}}


async def test_an_agent_outlives_a_host_that_reads_late(mounted: OpenMount, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(LARGE))
    async with (
        mounted(f"agent=unix:{tmp_path}/sock", limit_seconds=50, throttle="block") as it,
        agent(it, tmp_path),
    ):
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await read_file(host, large)
            await it.until(lambda: it.port().host_throttled)
            await trio.sleep(LATE)
            text = b""
            while not text.endswith(b"\n"):
                text += await host.receive_some()
            answer = json.loads(text)["return"]
            assert base64.b64decode(answer["buf-b64"]) == large.read_bytes()


@pytest.mark.guest_side("a guest keeps what comes for a port that is not open, and is soon full")
@pytest.mark.expect_log("could not be delivered")
async def test_an_agent_ends_in_order_if_its_port_is_full_on_the_defaults(
    mounted: OpenMount, tmp_path: Path
) -> None:
    """With O_NONBLOCK a throttled v8 port answers ENOSPC at once.

    The agent drops the rest. It ends if the port is still throttled when it wants to read again.
    """
    large = tmp_path / "large"
    large.write_bytes(os.urandom(LARGE))
    async with mounted(f"agent=unix:{tmp_path}/sock") as it:
        async with program("qemu-ga", *agent_options(it, tmp_path)) as running:
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await synchronize(host, 0)
                await read_file(host, large)
                await it.until(lambda: it.port().host_throttled)
            await it.until(lambda: not it.port().host_connected)
            if running.returncode is None:
                running.terminate()
            assert await running.wait() == 0


# --- ssh and rsync ------------------------------------------------------------------------


def make_keys(folder: Path) -> None:
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name],
            check=True,
            timeout=20,
        )


@pytest.mark.expect_log("could not be delivered", "ended with exit code 255")
async def test_ssh_and_rsync_over_a_port(mounted: OpenMount, tmp_path: Path) -> None:
    needs.programs("ssh", "ssh-keygen", "rsync", "socat", "/usr/sbin/sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    make_keys(tmp_path)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        "StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    server = f"exec:/usr/sbin/sshd -i -e -f {config}"
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "large").write_bytes(os.urandom(3 << 20))
    (source / "folder/small").write_text("small\n")
    async with mounted(f"ssh={server}", limit_seconds=50) as it:
        client = (
            f"ssh -F none -i {tmp_path}/user -l {getpass.getuser()} -o BatchMode=yes "
            "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
            f'-o "ProxyCommand=socat - OPEN:{it.file()}"'
        )
        assert await it.run(f"echo a question | {client} port cat") == "a question\n"
        await it.run(f"rsync -a -e '{client}' {source}/ port:{tmp_path}/there/")
        await it.run(f"rsync -a -e '{client}' port:{tmp_path}/there/ {tmp_path}/back/")
        await it.run(f"diff -r {source} {tmp_path}/back")


# --- node and Go --------------------------------------------------------------------------

NODE = """
const fs = require("fs");
const handle = fs.openSync(process.env.P, "r+");
const input = fs.createReadStream(null, {fd: handle, autoClose: false});
let heard = "";
input.on("data", piece => {
    heard += piece;
    if (heard.endsWith("end\\n")) {
        console.log(heard.length);
        process.exit();
    }
});
fs.createWriteStream(null, {fd: handle, autoClose: false}).write("x".repeat(300000) + "end\\n");
"""

GO = """
package main

import ("bufio"; "fmt"; "os"; "strings")

func main() {
    port, err := os.OpenFile(os.Getenv("P"), os.O_RDWR, 0)
    if err != nil {
        panic(err)
    }
    go port.WriteString(strings.Repeat("x", 300000) + "\\n")
    line, err := bufio.NewReader(port).ReadString('\\n')
    fmt.Println(len(line), err)
}
"""


@pytest.mark.long
async def test_node_reads_and_writes_at_once(mounted: OpenMount, tmp_path: Path) -> None:
    needs.programs("node")
    (tmp_path / "client.js").write_text(NODE)
    async with mounted("port=echo") as it:
        assert await it.run(f"node {tmp_path}/client.js") == "300004\n"


@pytest.mark.long
async def test_go_reads_and_writes_at_once(mounted: OpenMount, tmp_path: Path) -> None:
    needs.programs("go")
    (tmp_path / "client.go").write_text(GO)
    build = ["go", "build", "-o", str(tmp_path / "client"), str(tmp_path / "client.go")]
    cache = os.environ | {"GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    await trio.run_process(build, env=cache)
    async with mounted("port=echo") as it:
        assert await it.run(f"{tmp_path}/client") == "300001 <nil>\n"
