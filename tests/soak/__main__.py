"""Uses both ends at random for a long time: `python -m tests.soak [--time 20m] [--seed N]`.

On each device there are programs at the files and clients at the sockets, which come and go; ports
are added, removed, renamed, throttled and limited; ends are killed and started again. What comes
tells its place (tests/faults/traffic.py), so each byte is in its order, in its port. After each
round all that was accepted has come, or is counted as dropped.
"""

from __future__ import annotations

import random
import signal
import sys
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from vconfs.syntax.times import seconds
from vconfs.system.tasks import open_background

from .device import DEVICES, ROUND, Device, open_device

#: Seconds between two lines of progress.
_PROGRESS = 10
#: The share of rounds after which an end is killed.
_KILLS = 0.4


async def soak(
    names: Sequence[str],
    folder: Path,
    seed: int,
    duration: float,
    kills: float = _KILLS,
    length: tuple[float, float] = ROUND,
    rounds: int = 1,
) -> list[Device]:
    """Soak these devices at the same time, for at least this many rounds each.

    Return the devices, which know what they have done.
    """
    end = trio.current_time() + duration

    def over(device: Device) -> bool:
        return device.rounds >= rounds and trio.current_time() > end

    devices: list[Device] = []
    async with AsyncExitStack() as stack:
        for name in names:
            devices.append(await stack.enter_async_context(open_device(name, folder / name, seed)))
        async with open_background() as background:
            background.start_soon(_tell, devices)
            async with trio.open_nursery() as nursery:
                for device in devices:
                    nursery.start_soon(device.run, over, kills, length)
    return devices


async def _soak_until_signal(
    names: Sequence[str], folder: Path, seed: int, duration: float
) -> list[Device]:
    """Return nothing if a signal ends the soak. All programs and mounts end in either case."""
    devices: list[Device] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_background() as nursery:

            async def stop() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            devices = await soak(names, folder, seed, duration)
    return devices


async def _tell(devices: Sequence[Device]) -> None:
    begin = time.monotonic()
    while True:
        await trio.sleep(_PROGRESS)
        now = time.monotonic() - begin
        print(f"soak: {now:.0f} s: {'; '.join(map(str, devices))}", flush=True)


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--time", default="20m", help="a time like 90s or 20m (20m)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help=", ".join(DEVICES))
    words = parser.parse_args()
    print(f"soak: seed {words.seed}, {words.time}", flush=True)
    with TemporaryDirectory(prefix="soak") as folder:
        try:
            names, duration = words.devices or list(DEVICES), seconds("--time", words.time)
            devices = trio.run(_soak_until_signal, names, Path(folder), words.seed, duration)
        except Exception:
            traceback.print_exc()
            print(f"soak: failed: seed {words.seed}", flush=True)
            return 1
    if not devices:
        print("soak: stopped by a signal", flush=True)
        return 1
    for device in devices:
        print(f"soak: {device}", flush=True)
    print(f"soak: all that was accepted has come or was counted: seed {words.seed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
