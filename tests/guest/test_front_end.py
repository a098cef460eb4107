"""`vconfs host` behind QEMU: its generic vhost-user device, with Linux's own driver in the guest.

Only the newest QEMU has that device. Its front-end does not survive that the back-end comes again,
so after the host end was killed, the device is unplugged and plugged again.

This is tried with each of MACHINES, as far as a machine can: on virtio-mmio nothing is plugged.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, frozen

from tests.guest import guest as machine
from tests.guest.guest import Guest, open_guest
from tests.qemu import releases
from tests.qemu.changes import pattern, receive_exactly
from tests.qemu.machine import Monitor
from tests.support import needs
from tests.support.remote.client import Remote
from tests.uml.hosts import HostEnd, open_host

pytestmark = pytest.mark.limit(120)

CONSOLE, DATA = "org.example.console", "org.example.data"
PORTS = {CONSOLE: ",id=0,console", DATA: ",id=1"}
#: Two for each of the 31 ports that there may be, and two for control messages.
QUEUES = 64
UNIT = pattern(1)[:251]
SIZE = 4 << 20
MODULE = "virtio_console"


@frozen
class Kind:
    """How a guest has its console."""

    #: The release that the guest's kernel is from: see `machine.BOOT`.
    kernel: str = "own"
    on_pci: bool = True
    #: Options of the device.
    options: Mapping[str, str | int] = {}

    def device(self, number: int, queues: int) -> Mapping[str, str | int]:
        """Return the options of a console device; on PCI it is in slot `number`."""
        return {
            "driver": "vhost-user-test-device" + ("-pci" if self.on_pci else ""),
            "id": f"console{number}",
            **({"bus": f"slot{number}"} if self.on_pci else {}),
            "chardev": f"host{number}",
            "virtio-id": 3,
            "num_vqs": queues,
            "config_size": 12,
            **self.options,
        }

    @property
    def arguments(self) -> list[str]:
        """The machine's slots, and its memory, which a host end can map."""
        words = ["-machine", "memory-backend=ram"]
        words += ["-object", "memory-backend-memfd,id=ram,size=1G,share=on"]
        for slot in range(2 * self.on_pci):
            words += ["-device", f"pcie-root-port,id=slot{slot},chassis={slot},slot={slot}"]
        return words


MACHINES = {
    "pci": Kind(),
    "a current kernel": Kind("testing", options={"packed": True, "vq_size": 1024}),
    "mmio": Kind(on_pci=False),
}


def only(*kinds: str) -> pytest.MarkDecorator:
    """Run a test only on these machines."""
    return pytest.mark.parametrize("running", kinds, indirect=True)


@define
class Machine:
    """A guest, and the host end of its console."""

    kind: Kind
    guest: Guest
    folder: Path
    host: HostEnd
    stack: ExitStack

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Remote, Monitor]]:
        """Do things in the guest, and with QEMU."""
        async with self.guest.open_monitor() as monitor, self.guest.open_remote() as remote:
            yield remote, monitor

    def start_host(self, name: str = "host0") -> HostEnd:
        """Start a host end in a folder of that name."""
        (self.folder / name).mkdir(exist_ok=True)
        return self.stack.enter_context(open_host(self.folder / name, PORTS))

    async def plug(self, monitor: Monitor, number: int, host: HostEnd, queues: int) -> None:
        address = {"type": "unix", "data": {"path": str(host.device)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await monitor.command("chardev-add", id=f"host{number}", backend=backend)
        await monitor.command("device_add", **self.kind.device(number, queues))


def require(kind: Kind) -> str:
    """Return the command of a QEMU for this machine, or end the test if it cannot run here."""
    needs.programs(*machine.PROGRAMS)
    if problem := machine.fetch(kind.kernel):
        needs.cannot_run(problem)
    return releases.require("newest")


@contextmanager
def booted(kind: Kind, folder: Path, qemu: str, device: Path) -> Iterator[Guest]:
    """Boot a guest whose console's host end listens at `device`."""
    arguments = [*kind.arguments, "-chardev", f"socket,id=host0,path={device}"]
    arguments += ["-device", json.dumps(kind.device(0, QUEUES))]
    hardware = machine.Q35 if kind.on_pci else machine.MICROVM
    boot = machine.BOOT[kind.kernel]
    with open_guest(folder, boot, qemu, arguments, hardware=hardware) as guest:
        trio.run(guest.wait_booted)
        yield guest


@pytest.fixture(scope="module", params=MACHINES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Boot a guest with a console device in slot 0, and nothing in slot 1."""
    kind = MACHINES[request.param]
    qemu = require(kind)
    folder = tmp_path_factory.mktemp("guest")
    with ExitStack() as stack:
        (folder / "host0").mkdir()
        host = stack.enter_context(open_host(folder / "host0", PORTS))
        guest = stack.enter_context(booted(kind, folder, qemu, host.device))
        yield Machine(kind, guest, folder, host, stack)


async def echoes(remote: Remote, host: HostEnd, text: bytes) -> None:
    """Check that a port carries data both ways."""
    async with await host.connect(DATA) as client:
        file = await remote.open(await remote.kernel_port(DATA))
        await remote.connected(file)
        await client.send_all(text)
        await remote.poll_until(file, select.POLLIN)
        assert await remote.read(file, 100) == text
        await remote.write(file, text[::-1])
        assert await receive_exactly(client, len(text)) == text[::-1]
        await remote.close(file)


async def test_a_port_a_program_and_an_echo(running: Machine) -> None:
    host = running.host
    async with running.opened() as (remote, _):
        await echoes(remote, host, b"hello")
        for name, chardev, answer in (
            ("org.example.echo", "echo", b"one line\n"),
            ("org.example.program", "exec:sed -u s/one/a/", b"a line\n"),
        ):
            await host.ctl("add", f"{name}={chardev}")
            file = await remote.open(await remote.kernel_port(name))
            await remote.connected(file)
            await remote.write(file, b"one line\n")
            await remote.poll_until(file, select.POLLIN)
            assert await remote.read(file, 100) == answer
            await remote.close(file)
            await host.ctl("remove", name)


async def test_a_console(running: Machine) -> None:
    async with (
        running.opened() as (remote, _),
        await running.host.connect(CONSOLE) as client,
    ):
        await remote.run("stty -F /dev/hvc0 raw -echo")
        console = await remote.open("/dev/hvc0", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        await remote.write(console, b"login: ")
        assert await receive_exactly(client, 7) == b"login: "
        await client.send_all(b"root\n")
        await remote.poll_until(console, select.POLLIN)
        assert await remote.read(console, 100) == b"root\n"
        await remote.close(console)


async def test_much_data_while_the_guest_is_paused(running: Machine) -> None:
    data = pattern(SIZE)[:SIZE]
    async with (
        running.opened() as (remote, monitor),
        await running.host.connect(DATA) as client,
    ):
        file = await remote.open(await remote.kernel_port(DATA))
        await remote.connected(file)
        await remote.set_blocking(file, True)

        async def pause() -> None:
            for _ in range(3):
                await monitor.command("stop")
                await monitor.command("cont")

        async def check_digest() -> None:
            assert await remote.read_digest(file, SIZE) == hashlib.sha256(data).hexdigest()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_digest)
            nursery.start_soon(remote.write_repeated, file, UNIT, SIZE)
            nursery.start_soon(client.send_all, data)
            nursery.start_soon(pause)
            assert await receive_exactly(client, SIZE, seconds=60) == data
        await remote.close(file)


@only("pci", "mmio")  # in the current kernel it is no module
async def test_the_driver_is_unloaded_and_loaded(running: Machine) -> None:
    module = next(machine.CACHE.rglob(f"{MODULE}.ko"))
    async with running.opened() as (remote, _):
        for _ in range(2):
            await remote.run(f"busybox rmmod {MODULE}")
            assert not any("vport" in name for name in await remote.listdir("/dev"))
            await remote.run(f"busybox insmod {module}")
            await echoes(remote, running.host, b"once more")


@only("pci", "a current kernel")
async def test_the_host_end_is_killed_and_another_one_takes_its_place(running: Machine) -> None:
    async with running.opened() as (remote, monitor):
        file = await remote.open(await remote.kernel_port(DATA))
        running.host.process.kill()
        await noticed(monitor, "host0")
        await monitor.command("device_del", id="console0")
        while (await monitor.receive()).get("data", {}).get("device") != "console0":
            pass  # other events than DEVICE_DELETED
        await remote.poll_until(file, select.POLLHUP)
        await remote.close(file)
        await monitor.command("chardev-remove", id="host0")
        running.host = running.start_host()
        await running.plug(monitor, 0, running.host, QUEUES)
        await echoes(remote, running.host, b"the next host")


async def noticed(monitor: Monitor, chardev: str) -> None:
    """Wait until QEMU has noticed that a host end has left. It ends if its device goes before."""
    with trio.fail_after(10):
        while True:
            states = {c["label"]: c["filename"] for c in await monitor.command("query-chardev")}
            if states[chardev].startswith("disconnected:"):
                return


@only("pci")
async def test_a_device_with_too_few_queues_is_told_of(running: Machine) -> None:
    host = running.start_host("host1")
    async with running.opened() as (_, monitor):
        await running.plug(monitor, 1, host, 6)
        assert host.process.stderr is not None
        with trio.fail_after(30):
            said = await trio.to_thread.run_sync(host.process.stderr.readline)
    assert said.endswith(
        "a driver left without its queues: the front-end has 6 (num_vqs in QEMU), and the driver "
        "needs 64: set it to 64, or listen with max-ports=2\n"
    )


@only("pci")
async def test_the_guest_is_reset(running: Machine) -> None:
    async with running.guest.open_monitor() as monitor:
        await monitor.command("set-action", reboot="reset")
        await monitor.command("system_reset")
    await running.guest.wait_booted()
    async with running.opened() as (remote, _):
        await echoes(remote, running.host, b"after the reset")
