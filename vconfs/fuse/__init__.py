"""A trio session on the kernel's FUSE protocol, for any pyfuse3.Operations on Linux.

`mount` mounts a file system and returns its FUSE device, which `Session` serves (see `session`).
pyfuse3.main() is not enough for ports: signals do not end its reads.
"""

from vconfs.fuse._mountpoint import (
    Mount,
    MountError,
    MountFlag,
    inherited_device,
    is_mounted,
    listed,
    mount,
    unmount,
)
from vconfs.fuse._operations import (
    PollHandle,
    PortOperations,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    readdir_reply,
)
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
    "readdir_reply",
    "unmount",
]
