"""Notifications that change what the kernel has in its caches of a mount."""

from __future__ import annotations

import errno
import logging
import os
import threading
from queue import SimpleQueue
from typing import Final, TypeAlias

from vconfs.fuse import _kernel_protocol as wire
from vconfs.protocol.events import Buffer
from vconfs.system.descriptors import owned
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)

#: The node of the directory, the name, the node that is deleted or 0, True to ignore ENOENT.
_Entry: TypeAlias = tuple[int, bytes, int, bool]


class Notifier:
    """Sends the notifications of one session, with the parameters of pyfuse3's functions.

    Every method may be called from any thread, and raises OSError if the kernel refuses the
    notification: with ENOENT if it does not know the node or the name, with EBADF after the end of
    the session.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._ended = False
        self._lock = threading.Lock()
        self._trouble = LogOnce(log)
        #: The entries for the thread, and None at the end.
        self._entries: SimpleQueue[_Entry | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """End: the device is closed next, and its number may be reused."""
        with self._lock:
            self._ended = True
        self._entries.put(None)

    def invalidate_inode(self, inode: int, attr_only: bool = False) -> None:
        """Make the kernel forget the attributes of a node and, by default, its data.

        With a writeback cache this waits until the kernel has written the data.
        """
        self._send(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(inode, -bool(attr_only), 0))

    def invalidate_entry(self, inode_p: int, name: bytes, deleted: int = 0) -> None:
        """Make the kernel forget a name in a directory.

        It waits while the directory is in use by a request that is not answered, so a handler of
        such a request calls `invalidate_entry_async` instead. If the name is of the node `deleted`,
        programs that watch the node are told that it was deleted.
        """
        if deleted:
            head = wire.DELETE_OUT.pack(inode_p, deleted, len(name), 0)
            self._send(wire.NOTIFY_DELETE, head, name, b"\0")
        else:
            head = wire.INVAL_ENTRY_OUT.pack(inode_p, len(name), 0)
            self._send(wire.NOTIFY_INVAL_ENTRY, head, name, b"\0")

    def invalidate_entry_async(
        self, inode_p: int, name: bytes, deleted: int = 0, ignore_enoent: bool = False
    ) -> None:
        """Call `invalidate_entry` in a thread, one entry after the other, and log what fails."""
        self._entries.put((inode_p, name, deleted, ignore_enoent))
        with self._lock:
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(
                    target=self._invalidate_entries, name="fuse-notify", daemon=True
                )
                self._thread.start()

    def notify_store(self, inode: int, offset: int, data: Buffer) -> None:
        """Store data of a node in the kernel's page cache."""
        head = wire.STORE_OUT.pack(inode, offset, memoryview(data).nbytes, 0)
        self._send(wire.NOTIFY_STORE, head, data)

    def _invalidate_entries(self) -> None:
        while (entry := self._entries.get()) is not None and not self._ended:
            parent, name, deleted, ignore_enoent = entry
            try:
                self.invalidate_entry(parent, name, deleted)
            except OSError as error:
                if self._ended or (ignore_enoent and error.errno == errno.ENOENT):
                    continue
                text = "the kernel did not forget %r in directory %d: %s"
                self._trouble.warning(error.errno, text, name, parent, error.strerror)

    def _send(self, code: int, *parts: Buffer) -> None:
        # A call can take long, and the device be closed meanwhile: it has a descriptor of its own.
        with self._lock:
            if self._ended:
                raise OSError(errno.EBADF, "the session has ended")
            device = os.dup(self._device)
        with owned(device):
            size = wire.OUT_HEADER.size + sum(memoryview(part).nbytes for part in parts)
            os.writev(device, (wire.OUT_HEADER.pack(size, code, 0), *parts))
