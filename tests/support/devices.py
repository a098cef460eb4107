"""The devices that can be between both ends of a test, when these are in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from vconfs.device.stream import open_stream
from vconfs.device.vhost_user import open_vhost_user
from vconfs.guest.devices import join_embedded
from vconfs.guest.driver import drive
from vconfs.guest.ports import PortManager
from vconfs.host._stream_guests import serve_stream
from vconfs.host.host import Host
from vconfs.host.vhost_user.front_ends import serve_vhost_user
from vconfs.system.tasks import open_background

OpenDevice = Callable[[Host, PortManager, Path], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def _open_unix_stream(host: Host, manager: PortManager, folder: Path) -> AsyncIterator[None]:
    url = f"unix:{folder}/device"
    async with open_background() as nursery:
        await nursery.start(serve_stream, host, url, None)
        async with drive(manager, open_stream(url)):
            yield


@asynccontextmanager
async def _open_vhost_user(host: Host, manager: PortManager, folder: Path) -> AsyncIterator[None]:
    path = f"{folder}/device"
    async with open_background() as nursery:
        await nursery.start(serve_vhost_user, host, path, None)
        async with drive(manager, open_vhost_user(path, None)):
            yield


#: How the guest end of a test reaches its host end.
DEVICES: Mapping[str, OpenDevice] = {
    "embedded": lambda host, manager, folder: join_embedded(host, manager),
    "stream-unix": _open_unix_stream,
    "vhost-user": _open_vhost_user,
}
