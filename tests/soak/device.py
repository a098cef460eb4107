"""One device of a soak: both ends as programs, ports that come and go, and their accounts."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from tests.faults.programs import Both, Program, open_both
from tests.support.threads import in_thread
from tests.support.waiting import until
from vconfs.cli._control_client import ask
from vconfs.errors import VconfsError
from vconfs.protocol import control
from vconfs.system.tasks import open_background

from .ports import Pace, Port

#: Name → DEVICE url without the path, and the dialect.
DEVICES = {
    "embedded-v8": ("embedded", "v8"),
    "embedded-virtio1": ("embedded", "virtio1"),
    "vhost-user": ("vhost-user", "v8"),
    "vhost-user-virtio1": ("vhost-user", "virtio1"),
    "stream": ("stream:unix", "v8"),
}
_PORTS, _PORTS_MAX = 3, 6
#: Seconds in which everything that was accepted has to come, and for an end to be there again.
_SETTLING, _STARTING = 20, 30
#: Seconds of use between two accounts, at least and at most.
ROUND = (2.0, 8.0)


class Device:
    """Both ends, whose ports are used at random until the time is over."""

    def __init__(
        self, name: str, both: Both, numbers: random.Random, nursery: trio.Nursery
    ) -> None:
        self.name = name
        self.url, self.dialect = DEVICES[name]
        self.pace = Pace(numbers)
        self.ports: dict[int, Port] = {}
        self.rounds = self.kills = self.changes = self.dropped = 0
        self.said: list[Program] = []
        #: The changes of ports.
        self.history: list[str] = []
        self._numbers = numbers
        self._both = both
        self._nursery = nursery
        self._serial = 0
        self._host: Program
        self._mount: Program
        self._leaving: dict[int, Port] = {}
        self._carried = 0  # by ports that are gone

    @property
    def bytes(self) -> int:
        """The number of bytes that have come, on all ports."""
        ports = self.ports.values()
        return self._carried + sum(port.received for port in ports)

    def __str__(self) -> str:
        return (
            f"{self.name} {self.bytes >> 20} MiB {self.rounds} rounds {self.pace.opens} opens"
            f" {self.changes} changes {self.kills} kills {self.dropped} dropped"
        )

    # --- programs -------------------------------------------------------------------------

    @property
    def _control(self) -> Path:
        return self._both.folder / "control"

    @property
    def _specs(self) -> list[str]:
        return [port.spec(self._both.folder) for port in self.ports.values()]

    async def _start_host(self) -> None:
        with suppress(FileNotFoundError):
            self._control.unlink()
        words = ("--control", str(self._control), "--dialect", self.dialect)
        self._host = await self._both.host(*self._specs, words=words)
        self.said.append(self._host)

    async def _start_mount(self) -> None:
        await in_thread(self._unmount)
        if self.url == "embedded":
            mountpoint = self._both.mountpoint
            mountpoint.mkdir(exist_ok=True)
            words = (str(mountpoint), str(self._control), self.dialect, *self._specs)
            program = await self._both.start(1, "tests.soak.embedded", *words)
            self._host = program
            await until(lambda: self._both.serves(program.pid) or program.process.returncode)
            assert program.process.returncode is None, program.lines
            await until(self._control.exists)
        else:
            program = await self._both.mount("--dialect", self.dialect)
        self._mount = program
        self.said.append(program)

    def _unmount(self) -> None:
        command = ["umount", "-l", str(self._both.mountpoint)]
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False, timeout=20)

    async def start(self) -> None:
        """Start both ends and some ports."""
        for _ in range(_PORTS):
            self._new_port()
        if self.url != "embedded":
            await self._start_host()
        await self._start_mount()
        for port in self.ports.values():
            self._use(port)

    async def _kill_one(self) -> None:
        """Kill an end in the middle of it, and start it again; the account begins anew."""
        victim = self._numbers.choice((self._host, self._mount))
        await trio.sleep(self._numbers.uniform(0, 1))
        await victim.kill()
        self.kills += 1
        self.pace.calm_down()
        with trio.fail_after(_STARTING):
            if victim is self._host and self.url != "embedded":
                await self._start_host()
            else:
                await self._start_mount()

    @property
    def last_lines(self) -> str:
        """What the programs have said last, and what was done to the ports."""
        said = [line for program in self.said[-4:] for line in program.lines[-20:]]
        return "\n".join([*self.history[-30:], *said])

    def check_programs(self) -> None:
        """Check that no program has had an error."""
        for program in self.said:
            said = program.said.decode(errors="replace")
            assert "Traceback" not in said and "ERROR" not in said, said

    # --- ports ----------------------------------------------------------------------------

    def _new_port(self) -> Port:
        taken = self.ports.keys() | self._leaving.keys()
        port_id = next(port_id for port_id in range(_PORTS_MAX * 2) if port_id not in taken)
        self._serial += 1
        port = self.ports[port_id] = Port(port_id, self._serial)
        return port

    def _use(self, port: Port) -> None:
        self._nursery.start_soon(self._use_until_removed, port)

    async def _use_until_removed(self, port: Port) -> None:
        try:
            await port.use(self._both.folder, self._both.file(port.id), self.pace)
        except* AssertionError as errors:
            where = f"{self.name}, {port.name} (id {port.id})"
            raise AssertionError(f"{where}:\n{self.last_lines}") from errors

    async def _ask(self, request: control.Request) -> list[dict[str, Any]]:
        if not isinstance(request, control.List):
            self.history.append(f"{trio.current_time():.2f} {request}")
        return await in_thread(lambda: ask(self._control, request))

    async def _add(self) -> None:
        if len(self.ports) + len(self._leaving) < _PORTS_MAX:
            port = self._new_port()
            await self._ask(control.Add(port.spec(self._both.folder)))
            self._use(port)

    async def _remove(self) -> None:
        if len(self.ports) > 1:
            port = self.ports.pop(self._numbers.choice([*self.ports]))
            self._leaving[port.id] = port
            if self._numbers.random() < 0.5:  # else it is used while it is removed
                port.scope.cancel()
                await port.is_gone.wait()
            await self._ask(control.Remove(port.id))
            port.scope.cancel()
            await port.is_gone.wait()
            self._carried += port.received
            del self._leaving[port.id]

    async def _change(self) -> None:
        """Change a port, or the set of them."""
        numbers, port_id = self._numbers, self._numbers.choice([*self.ports])
        self.changes += 1
        what = numbers.choice(("add", "remove", "rename", "throttle", "limit", "cache", "resize"))
        if what == "add":
            await self._add()
        elif what == "remove":
            await self._remove()
        elif what == "rename":
            await self._ask(control.Rename(port_id, f"name {numbers.randrange(1000)}/\x1b"))
        elif what == "throttle":
            await self._ask(control.Throttle(port_id, True))
            await trio.sleep(numbers.uniform(0, 0.5))
            await self._ask(control.Throttle(port_id, False))
        elif what == "limit":
            await self._ask(control.Limit(port_id, numbers.choice((1, 2, 16))))
        elif what == "cache":
            # Not off again: data that is kept, then data that is dropped would be a gap in the
            # middle of what the next client gets, which no track expects.
            await self._ask(control.Cache(port_id, True))
        else:
            await self._ask(control.Resize(port_id, numbers.randrange(200), numbers.randrange(200)))

    # --- accounts -------------------------------------------------------------------------

    async def _dropped(self) -> dict[int, int]:
        """Return by port how many bytes both ends have dropped."""
        host = {port["id"]: port["dropped"] for port in await self._ask(control.List())}
        guest = {
            port_id: await in_thread(lambda port_id=port_id: self._at_guest(port_id))  # type: ignore[misc]
            for port_id in self.ports
        }
        return {port_id: host[port_id] + guest[port_id] for port_id in self.ports}

    def _files(self) -> str:
        command = ["sh", "-c", 'getfattr -d "$1"/vcon*', "-", str(self._both.mountpoint)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def _at_guest(self, port_id: int) -> int:
        return int(os.getxattr(self._both.file(port_id), "user.dropped"))

    async def _until_quiet(self) -> None:
        """Wait until every port has a host again, and nothing comes any more."""
        with trio.fail_after(_SETTLING):
            for port_id in self.ports:
                await self._both.until_connected(port_id)
            before = -1
            while before != (now := sum(port.missing for port in self.ports.values())):
                before = now
                await trio.sleep(0.5)

    async def _begin_account(self) -> None:
        await self._until_quiet()
        dropped = await self._dropped()
        for port_id, port in self.ports.items():
            port.before = port.missing, dropped[port_id]

    async def _close_account(self) -> None:
        """Check that all that was accepted since then has come, or was counted as dropped."""
        wrong: list[str] = []
        with trio.move_on_after(_SETTLING):
            while True:
                wrong = [*self._faults(await self._dropped())]
                if not wrong:
                    break
                await trio.sleep(0.1)
        if wrong:
            states = [*map(str, await self._ask(control.List())), await in_thread(self._files)]
            raise AssertionError("\n".join((self.name, *wrong, *states, self.last_lines)))
        self.rounds += 1

    def _faults(self, dropped: dict[int, int]) -> Iterator[str]:
        for port_id, port in self.ports.items():
            missing, counted = port.missing - port.before[0], dropped[port_id] - port.before[1]
            if missing != counted:
                yield (
                    f"{port.name} (id {port_id}): {missing} bytes have not come, of which {counted}"
                    f" were counted as dropped ({port.up.missing} up, {port.down.missing} down)"
                )

    # --- the soak -------------------------------------------------------------------------

    async def run(
        self, over: Callable[[Device], bool], kills: float, length: tuple[float, float]
    ) -> None:
        """Soak until `over`, in rounds of this length; an end is killed in a share of them."""
        await self.start()
        await self._begin_account()
        while True:
            self.pace.go_on()
            await self._live(self._numbers.uniform(*length))
            self.pace.calm_down()
            await self._close_account()
            self.dropped += sum(port.missing - port.before[0] for port in self.ports.values())
            if over(self):
                break
            if self._numbers.random() < kills:
                self.pace.go_on()
                await self._kill_one()
            await self._begin_account()
        self.check_programs()

    async def _live(self, seconds: float) -> None:
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await trio.sleep(self._numbers.expovariate(1 / 0.3))
            with suppress(VconfsError):  # the ids of ports change under us
                await self._change()


@asynccontextmanager
async def open_device(name: str, folder: Path, seed: int) -> AsyncIterator[Device]:
    """Make a device; everything of it ends with the block."""
    folder.mkdir()
    kind = DEVICES[name][0]
    url = kind if kind == "embedded" else f"{kind}:{folder}/device"
    async with open_both(folder, url) as both, open_background() as nursery:
        yield Device(name, both, random.Random(f"{seed} {name}"), nursery)
