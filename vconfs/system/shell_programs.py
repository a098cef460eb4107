"""Running a shell command with its input and output, and ending it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress
from typing import Final

import trio

from vconfs.system.descriptors import with_usual_limit
from vconfs.system.edges import Watch
from vconfs.system.pipes import Pipe
from vconfs.system.queue_sizes import bytes_to_read

#: Seconds that a program may keep running after SIGTERM.
_PATIENCE: Final = 1.0
#: Exit codes of a shell that could not run its command.
_SHELL_CODES: Final = {126: "could not be run (126)", 127: "was not found (127)"}


class Program:
    """A running program, which leads its own session.

    Only `end` reaps it, so until then its process ID and group ID stay valid.
    """

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._stdin, self._stdout = _streams(process)
        self._forced = False
        #: Readable when the program has ended.
        self._pidfd: int = os.pidfd_open(process.pid)
        self.input: Pipe = Pipe(self._stdin.fileno())
        #: The read end of its input, once ours is closed, to count what it has not read.
        self._unread: int | None = None
        self._input_closed = False
        self.output: Pipe = Pipe(self._stdout.fileno())
        try:
            self._news = Watch(dict.fromkeys((self.output.descriptor, self._pidfd), select.EPOLLIN))
        except OSError:  # no descriptor is left
            os.close(self._pidfd)
            raise

    @property
    def has_ended(self) -> bool:
        """True if the program has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def failure(self) -> str:
        """Why the program failed, after `end`; "" if it succeeded or was made to end."""
        code = self._process.returncode
        if not code or self._forced:
            return ""
        if code < 0:
            return f"was ended by signal {-code}"
        return _SHELL_CODES.get(code, f"ended with exit code {code}")

    async def wait(self) -> None:
        """Wait until the program has written output, has closed it, or has ended."""
        await self._news.wait()

    async def wait_end(self) -> None:
        """Wait until the program has ended."""
        await trio.lowlevel.wait_readable(self._pidfd)

    def unread(self) -> int:
        """Return how many bytes of its input the program has not read."""
        if not self._input_closed:
            return self.input.unread()
        return bytes_to_read(self._unread) if self._unread is not None else 0

    async def close_input(self) -> None:
        """Close the program's input, so that it sees end of file."""
        if not self._input_closed:
            stdin = f"/proc/self/fd/{self._stdin.fileno()}"
            with suppress(OSError):  # no descriptor is left: unread bytes are not counted
                self._unread = os.open(stdin, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._input_closed = True
            await self._stdin.aclose()

    def force(self, number: int) -> None:
        """Send a signal to the program and its process group."""
        self._forced = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def end(self) -> int:
        """Close its streams, end the program if it still runs, and return `unread`.

        SIGKILL follows if SIGTERM does not end it in time.
        """
        runs = not self.has_ended
        await self.close_input()
        self._news.close()
        await self._stdout.aclose()
        if runs:  # it may have ended since: by SIGPIPE, because we have closed its output
            self.force(signal.SIGTERM)
            with trio.move_on_after(_PATIENCE):
                await self.wait_end()
        if self._forced:
            self.force(signal.SIGKILL)
        await self._process.wait()
        os.close(self._pidfd)
        unread = self.unread()
        if self._unread is not None:
            os.close(self._unread)
        return unread


def _streams(process: trio.Process) -> tuple[trio.lowlevel.FdStream, trio.lowlevel.FdStream]:
    stdin, stdout = process.stdin, process.stdout
    assert isinstance(stdin, trio.lowlevel.FdStream) and isinstance(stdout, trio.lowlevel.FdStream)
    return stdin, stdout


async def start_program(command: str) -> Program:
    """Run a shell command with pipes for its input and output. Raise OSError if that fails."""
    process = await trio.lowlevel.open_process(
        with_usual_limit(command),
        shell=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return Program(process)
    except OSError:  # no descriptor is left
        os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            for stream in _streams(process):
                await stream.aclose()
            await process.wait()
        raise
