"""Shell commands on a port, while the test is the client at the host end."""

from __future__ import annotations

import trio

from tests.qemu.changes import receive_exactly
from tests.support.remote.client import Remote


async def check_cat_and_echo(remote: Remote, path: str, client: trio.SocketStream) -> None:
    """Have echo write to a mounted port, and cat read from it until the client hangs up."""
    await remote.run(f"echo 'to the host' >{path}")
    assert await receive_exactly(client, 12) == b"to the host\n"
    said = []

    async def cat() -> None:
        said.append(await remote.run(f"cat {path}"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cat)
        while not (await remote.getxattr(path, "user.openers")).endswith(b"cat"):
            pass  # what comes while echo has it open goes when that closes it
        before = int(await remote.getxattr(path, "user.bytes_in"))
        await client.send_all(b"to the guest\n")
        while int(await remote.getxattr(path, "user.bytes_in")) < before + 13:
            pass  # QEMU drops what it holds for a port that is not open yet when its client leaves
        await client.aclose()
    assert said == ["to the guest\n"]
