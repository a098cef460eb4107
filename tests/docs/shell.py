"""A shell for the commands of one page, in a world of its own that ends with it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import define

REPOSITORY: Final = Path(__file__).parents[2]
_LIMIT: Final = 20.0
_DONE: Final = b"\x01done\n"

#: A namespace of processes and one of mounts: whatever a page leaves running or mounted ends with
#: the shell, and root does not see other mounts of vconfs. /mnt and /run are empty there but for
#: /mnt/vcon, vconfs is where mount(8) finds it, and we are in this repository.
UNSHARE: Final = (
    "unshare",
    *(() if os.geteuid() == 0 else ("--user", "--map-root-user")),
    *("--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
PREPARE: Final = """\
umount -a -l -t fuse.vconfs 2>/dev/null
for place in /mnt /run /usr/local/sbin; do mount -t tmpfs none $place; done
mkdir /mnt/vcon; ln -s "$(command -v vconfs)" /usr/local/sbin/
"""


def environment() -> dict[str, str]:
    """The environment of a page's commands: vconfs in PATH, English, no settings of the user."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": "/run", "LC_ALL": "C.UTF-8", "TERM": "xterm", "USER": "root"}


@define
class Shell:
    """A bash that runs one command after the other."""

    _bash: subprocess.Popen[bytes]

    def run(self, command: str) -> str:
        """Run a command and give what it prints; AssertionError: it does not end."""
        assert self._bash.stdin is not None
        script = f"{{ {command}\n}} </dev/null\nprintf '\\001done\\n'\n"
        self._bash.stdin.write(script.encode())
        self._bash.stdin.flush()
        return self._output(command)

    def _output(self, command: str) -> str:
        assert self._bash.stdout is not None
        output, end = b"", time.monotonic() + _LIMIT
        while not output.endswith(_DONE):
            left = max(0.0, end - time.monotonic())
            ready = select.select([self._bash.stdout], [], [], left)[0]
            data = os.read(self._bash.stdout.fileno(), 1 << 16) if ready else b""
            assert data, f"{command!r} does not end; so far it printed:\n{output.decode()}"
            output += data
        return output.removesuffix(_DONE).decode()


@contextmanager
def open_shell() -> Iterator[Shell]:
    """Open a shell for a page; it and all that it has started end with the block."""
    with subprocess.Popen(
        [*UNSHARE, "bash", "--norc", "-s"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=REPOSITORY,
        env=environment(),
    ) as bash:
        try:
            shell = Shell(bash)
            assert shell.run(PREPARE) == ""
            yield shell
        finally:
            bash.kill()
