"""A console on a PCI bus that lies: each wrong thing and its outcome, and anything at all."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.unit.device.fake_console import FEATURES, FakeConsole, open_console
from tests.unit.device.fake_function import CONFIG, ISR, FakeFunction
from tests.unit.ends.test_ends import spec, taken
from tests.unit.protocol.test_virtio_pci import REAL
from vconfs.device.pci import open_pci
from vconfs.errors import VconfsError
from vconfs.guest.driver import Driver, drive
from vconfs.guest.ports import PortManager
from vconfs.protocol.virtio_pci import Common, Register
from vconfs.testing import Puppet

CONTROL_IN, DATA_IN, DATA_OUT = 2, 4, 5
SIZE = 64

#: For a device that does anything at all: which warnings it causes is up to chance.
ANY_WARNING = pytest.mark.expect_log(".")


class Scene:
    """A console with two ports, of which port 1 has its host on a puppet, and its driver."""

    def __init__(self, fake: FakeConsole, driver: Driver, manager: PortManager) -> None:
        self.fake = fake
        self.driver = driver
        self.manager = manager

    def ring(self, queue: int, *, used: bool) -> int:
        """Where a queue's used or available ring is in the memory."""
        register = Common.QUEUE_DEVICE_LOW if used else Common.QUEUE_DRIVER_LOW
        return self.fake.words[queue, register]

    def poke(self, at: int, form: str, value: int) -> None:
        struct.pack_into("<" + form, self.fake.view, at, value)

    def index(self, queue: int) -> int:
        """The used index of a queue as the device has it."""
        return self.fake.rings[queue]._published

    def use(self, queue: int, head: int, length: int) -> None:
        """Use a buffer that is not looked at, by its number."""
        index, at = self.index(queue), self.ring(queue, used=True)
        self.poke(at + 4 + 8 * (index % SIZE), "I", head)
        self.poke(at + 8 + 8 * (index % SIZE), "I", length)
        self.poke(at + 2, "H", index + 1)
        self.fake.isr = 1
        self.fake.interrupt()


async def play(act: Callable[[Scene, Puppet], Awaitable[None]], features: int = FEATURES) -> Scene:
    """Let a scene begin well, and then `act`."""
    puppet, manager = Puppet(), PortManager()
    specs = [spec(b"con", console=True), spec(b"org.example.0", puppet)]
    async with open_console(specs, features=features or FEATURES) as fake:
        async with drive(manager, open_pci(fake)) as driver:
            await trio.testing.wait_all_tasks_blocked()
            assert manager.ports[1].host_connected
            scene = Scene(fake, driver, manager)
            await act(scene, puppet)
            await trio.testing.wait_all_tasks_blocked()
        assert not any(port.attached for port in manager.ports.values())
        assert fake.status == 0
    return scene


# --- used rings ---------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [CONTROL_IN, DATA_IN, 0])
@pytest.mark.parametrize(
    ("head", "length", "reason"),
    [
        (SIZE, 0, r"used id 64 was not in flight"),
        (2**32 - 1, 0, r"used id 4294967295 was not in flight"),
        (0, 4097, r"used length 4097 is more than the buffer's 4096 bytes"),
        (0, 2**32 - 1, r"used length 4294967295 is more"),
    ],
)
@pytest.mark.expect_log("device lost")
async def test_a_wrong_used_entry_loses_the_device(
    queue: int, head: int, length: int, reason: str
) -> None:
    async def act(scene: Scene, puppet: Puppet) -> None:
        scene.use(queue, head, length)
        await scene.driver.stopped.wait()
        assert scene.driver.reason.startswith(f"queue {queue}: {reason}")

    await play(act, 1 << 32 | 2)


@pytest.mark.expect_log("device lost")
async def test_a_used_entry_for_what_was_never_sent() -> None:
    async def act(scene: Scene, puppet: Puppet) -> None:
        scene.use(DATA_OUT, 0, 0)
        await scene.driver.stopped.wait()
        reason = "queue 5: used.idx jumped from 0 to 1 with 0 buffers in flight"
        assert scene.driver.reason == reason

    await play(act)


async def test_kicks_that_are_unwanted_or_wanted_at_the_wrong_place_lose_nothing() -> None:
    """`used.flags` and `avail_event` say when to kick; the wrong ones cost kicks, or time."""

    async def act(scene: Scene, puppet: Puppet) -> None:
        port = scene.manager.ports[1]
        for event in (0, 1, 77, 0xFFFF):
            at = scene.ring(DATA_OUT, used=True)
            scene.poke(at, "H", 0xFFFF)
            scene.poke(at + 4 + 8 * SIZE, "H", event)
            assert port.write_nowait(b"data") == 4
        await puppet.port.send(b"hello")
        assert taken(await port.read(100)) == b"hello"
        scene.fake.post(4, 0x3000, 2, DATA_OUT)  # the device looks
        assert await puppet.port.receive() == b"data" * 4
        assert not scene.driver.stopped.is_set()

    await play(act)


Poke = tuple[int, bool, int, int]


@settings(max_examples=examples(40))
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 3, DATA_IN, DATA_OUT]),
            st.booleans(),
            st.one_of(st.integers(0, 20), st.integers(0, 8 * SIZE + 5)),
            st.one_of(st.integers(0, 2), st.integers(0, 255)),
        ),
        max_size=12,
    ),
    st.sampled_from([0, 1 << 32 | 2]),
)
@ANY_WARNING
def test_any_byte_of_any_ring(pokes: list[Poke], features: int) -> None:
    """The ports go on, or the device is lost for a reason that names the queue."""

    async def act(scene: Scene, puppet: Puppet) -> None:
        for queue, used, offset, value in pokes:
            if not used:
                offset %= 2 * SIZE + 6
            scene.fake.view[scene.ring(queue, used=used) + offset] = value
            puppet.port.send_nowait(b"hello")
            if not scene.driver.stopped.is_set():
                with suppress(trio.WouldBlock):  # the device turns out to be lost
                    scene.manager.ports[1].write_nowait(b"data")
            scene.fake.isr = 3
            scene.fake.interrupt()
            await trio.testing.wait_all_tasks_blocked()
        if scene.driver.stopped.is_set():
            assert scene.driver.reason.startswith("queue ")

    trio.run(play, act, features)


# --- control messages ---------------------------------------------------------------------


@settings(max_examples=examples(40))
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=16),
            st.builds(
                lambda port_id, event, value, rest: (
                    struct.pack("<IHH", port_id, event, value) + rest
                ),
                st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)),
                st.one_of(st.integers(0, 9), st.integers(0, 65535)),
                st.integers(0, 2),
                st.binary(max_size=12),
            ),
        ),
        max_size=30,
    )
)
@ANY_WARNING
def test_any_control_messages(messages: list[bytes]) -> None:
    """There are never more ports than the device said, and the device is not lost."""

    async def act(scene: Scene, puppet: Puppet) -> None:
        attached = scene.fake.attached
        assert attached is not None
        for message in messages:
            link = attached._link
            while not link.find_buffer(CONTROL_IN, 1):
                await trio.testing.wait_all_tasks_blocked()
            link.send(CONTROL_IN, message, b"")
            link.flush(CONTROL_IN)
        await trio.testing.wait_all_tasks_blocked()
        assert not scene.driver.stopped.is_set()
        assert set(scene.manager.ports) <= set(range(4))

    trio.run(play, act)


# --- registers ----------------------------------------------------------------------------

REGISTERS = [value for value in vars(Common).values() if isinstance(value, Register)]
ANSWERS = st.dictionaries(
    st.sampled_from([*REGISTERS, Register(ISR, 1), *(Register(CONFIG + at, 4) for at in (0, 4))]),
    st.lists(st.one_of(st.integers(0, 16), st.integers(0, 2**32 - 1)), min_size=1, max_size=3),
    max_size=4,
)


class Liar(FakeFunction):
    """Answers some reads with other values, in turn."""

    def __init__(self, answers: Mapping[Register, list[int]]) -> None:
        super().__init__()
        self._answers = {register: list(values) for register, values in answers.items()}

    async def read(self, bar: int, offset: int, size: int) -> int:
        value = await super().read(bar, offset, size)
        if values := self._answers.get(Register(offset, size)):
            values.append(values.pop(0))
            value = values[-1] & (1 << 8 * size) - 1
        return value


@settings(max_examples=examples(40))
@given(ANSWERS)
@ANY_WARNING
def test_any_registers(answers: Mapping[Register, list[int]]) -> None:
    trio.run(
        is_driven_or_refused, Liar(answers), clock=trio.testing.MockClock(autojump_threshold=0)
    )


@settings(max_examples=examples(40))
@given(st.lists(st.tuples(st.integers(4, 0xA4), st.integers(0, 255)), max_size=4))
@ANY_WARNING
def test_any_capabilities(changes: list[tuple[int, int]]) -> None:
    fake, function = FakeFunction(), bytearray(REAL)
    for at, value in changes:
        function[at] = value
    fake.function = bytes(function)
    trio.run(is_driven_or_refused, fake, clock=trio.testing.MockClock(autojump_threshold=0))


async def is_driven_or_refused(fake: FakeFunction) -> None:
    """One clear error, or a driver that can be interrupted; in no more than a few seconds."""
    try:
        async with drive(PortManager(), open_pci(fake)) as driver:
            for _ in range(3):
                fake.isr = 3
                fake.interrupt()
                await trio.testing.wait_all_tasks_blocked()
            assert bool(driver.reason) == driver.stopped.is_set()
    except VconfsError as error:
        assert str(error)
        assert "\n" not in str(error)
    assert trio.current_time() < 30


async def test_more_queues_than_there_can_be_memory_for_are_not_even_looked_at() -> None:
    fake = FakeFunction(ports=32766)
    with pytest.raises(VconfsError, match="8 MiB of memory are not enough for 65534 queues"):
        async with drive(PortManager(), open_pci(fake)):
            raise AssertionError
    assert Common.QUEUE_SELECT not in fake.plain
