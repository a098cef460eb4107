"""Makes pyfuse3's init, main and close serve by our session, in every Python that finds this file.

Python imports a module of this name when it starts. The folder is on the path of pyfuse3's own
tests, and of the examples that they run. Only what embedders do by themselves is here: everything
that operations call is left to our session.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyfuse3

from vconfs import fuse

_session: fuse.Session
_mount: fuse.Mount


def init(
    operations: pyfuse3.Operations, mountpoint: str, options: Collection[str] = frozenset()
) -> None:
    global _session, _mount
    _mount = fuse.mount(Path(mountpoint))
    _session = fuse.Session(operations, _mount.device)


async def main(min_tasks: int = 1, max_tasks: int = 99) -> None:
    await _session.run()


def close(unmount: bool = True) -> None:
    _mount.close()


for _function in (init, main, close):
    setattr(pyfuse3, _function.__name__, _function)
