"""The example of a message bus, over the packets of seqpacket chardevs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from .conftest import OpenMount, program
from .examples import EXAMPLES, next_line

pytestmark = pytest.mark.guest_side("only a guest's writes keep their boundaries")


async def test_a_message_goes_to_all_other_subscribers_of_its_topic(
    mounted: OpenMount, tmp_path: Path
) -> None:
    sockets = [f"{tmp_path}/{guest}" for guest in "abc"]
    ports = [f"{path[-1]}=seqpacket:{path}" for path in sockets]
    async with mounted(*ports) as it:
        async with program(sys.executable, str(EXAMPLES / "bus.py"), *sockets) as bus:
            assert bus.stdout is not None
            assert await next_line(bus.stdout) == "joining 3 guests"
            await it.until(lambda: all(port.host_connected for port in it.manager.ports.values()))
            script = """
                exec 3<>vcon0 4<>vcon1 5<>vcon2
                echo +news >&3; echo +news >&4; echo +a >&5
                for guest in 3 4 5; do read -r done <&$guest; echo $done; done
                echo news for b >&3; read -r x <&4; echo $x
                echo a for c >&4; read -r x <&5; echo $x
                echo -a >&5; read -r done <&5; echo $done
                echo a for nobody >&3
                echo news from c >&5; read -r x <&3; read -r y <&4; echo $x, $y
            """
            assert (await it.run(script)).splitlines() == [
                *("+news", "+news", "+a"),
                "news for b",
                "a for c",
                "-a",
                "news from c, news from c",
            ]
            assert it.port(2).queued == 0


async def test_the_bus_goes_on_when_a_guest_goes_and_ends_with_the_last(
    mounted: OpenMount, tmp_path: Path
) -> None:
    sockets = [f"{tmp_path}/{guest}" for guest in "ab"]
    async with program(sys.executable, str(EXAMPLES / "bus.py"), *sockets) as bus:
        assert bus.stdout is not None
        assert await next_line(bus.stdout) == f"{sockets[0]}: No such file or directory"
        assert await bus.wait() == 1
    async with mounted(*(f"{path[-1]}=seqpacket:{path}" for path in sockets)) as it:
        async with program(sys.executable, str(EXAMPLES / "bus.py"), *sockets) as bus:
            await it.until(lambda: it.port(1).host_connected)
            it.host.remove(0)
            assert await it.run("exec 3<>vcon1; echo +x >&3; echo 'x y' >&3") == ""
            assert bus.returncode is None
            it.host.remove(1)
            with trio.fail_after(10):
                assert await bus.wait() == 0
