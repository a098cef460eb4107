"""Who may use a file, socket, fifo or pty that we make."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from attrs import frozen

#: The mode of all that we make, if no other is asked for: only our own user may use it.
PRIVATE: Final = 0o600


@frozen
class FileAccess:
    """The mode, owner and group of something that we make. An ID of -1 means our own."""

    mode: int = PRIVATE
    owner: int = -1
    group: int = -1

    def apply(self, file: str | int) -> None:
        """Set them on a path or descriptor that was made with the mode `PRIVATE`.

        Raise OSError if we may not.
        """
        if (self.owner, self.group) != (-1, -1):
            os.chown(file, self.owner, self.group)
        os.chmod(file, self.mode)

    def apply_to_socket(self, path: str) -> None:
        """Set them on the path of a unix socket. Raise OSError if we may not, or it is none.

        A link or file that another program puts there meanwhile is left alone.
        """
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self.apply(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)


#: What applies if nothing else is asked for.
OUR_OWN: Final = FileAccess()
