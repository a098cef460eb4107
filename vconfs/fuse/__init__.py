"""A trio session on the kernel's FUSE protocol, for any pyfuse3.Operations on Linux.

`mount` mounts a file system and returns its FUSE device, which `Session` serves (see `session`).
pyfuse3.main() is not enough for ports: signals do not end its reads.

Operations that were written for pyfuse3.main() need no change if they run on trio (those for
`pyfuse3.asyncio` cannot be served) and call pyfuse3's functions as `pyfuse3.invalidate_inode(…)`:
while a session runs, `readdir_reply`, `invalidate_inode`, `invalidate_entry`,
`invalidate_entry_async`, `notify_store` and `terminate` of that module act on the session whose
handler calls them. `pyfuse3.init`, `main` and `close` do not; `pyfuse3.trio_token` is not set.
"""

from vconfs.fuse._mountpoint import (
    Mount,
    MountError,
    MountFlag,
    inherited_device,
    is_mounted,
    listed,
    mount,
    place_of,
    unmount,
)
from vconfs.fuse._operations import (
    PollHandle,
    PortOperations,
    ReaddirToken,
    RequestContext,
    SetattrFields,
)
from vconfs.fuse._routing import readdir_reply
from vconfs.fuse._session import Session

__all__ = [
    "Mount",
    "MountError",
    "MountFlag",
    "PollHandle",
    "PortOperations",
    "ReaddirToken",
    "RequestContext",
    "Session",
    "SetattrFields",
    "inherited_device",
    "is_mounted",
    "listed",
    "mount",
    "place_of",
    "readdir_reply",
    "unmount",
]
