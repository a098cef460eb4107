"""A terminal to type into and to look at, by tmux."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import define

from .shell import PREPARE, REPOSITORY, UNSHARE, environment

_LIMIT: Final = 20.0
_PROMPT: Final = "$ "


@define
class Terminal:
    """One window, in which a shell runs."""

    _tmux: tuple[str, ...]
    _window: str

    def type(self, line: str) -> None:
        """Type a line."""
        self._do("send-keys", "-t", self._window, "-l", line)
        self.press("Enter")

    def press(self, key: str) -> None:
        """Press a key that has a name, like C-c."""
        self._do("send-keys", "-t", self._window, key)

    def screen(self) -> str:
        """Return the visible text, without the empty lines at the end."""
        return self._do("capture-pane", "-p", "-J", "-t", self._window).rstrip()

    def until(self, condition: Callable[[str], object]) -> str:
        """Wait until the screen is so, and give it; AssertionError: it does not become so."""
        end = time.monotonic() + _LIMIT
        while not condition(screen := self.screen()):
            assert time.monotonic() < end, screen
            time.sleep(0.01)
        return screen

    def run(self, command: str) -> None:
        """Type a command, and wait until the shell asks for the next one."""
        prompts = self.prompts(self.screen())
        self.type(command)
        self.until(lambda screen: self.prompts(screen) > prompts)

    def clear(self) -> None:
        """Begin with an empty screen."""
        self.type("clear")
        self.until(lambda screen: screen == _PROMPT.strip())

    @staticmethod
    def prompts(screen: str) -> int:
        """Count the prompts on a screen, if the last one waits for a command."""
        lines = screen.split("\n")
        return sum(line.startswith("$") for line in lines) if lines[-1] == "$" else 0

    def _do(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, timeout=_LIMIT)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def open_terminals(folder: Path, count: int = 1) -> Iterator[list[Terminal]]:
    """Open windows of one world of their own (see `shell`), which ends with the block."""
    tmux = ("tmux", "-S", f"{folder}/tmux", "-f", "/dev/null")
    window = "\"env PS1='$ ' bash --norc --noprofile\""
    begin = f"new-session -d -s test -x 100 -y 40 {window}"
    more = f"new-window -d -t test {window}"
    commands = " \\; ".join([begin, *[more] * (count - 1)])
    script = f"{PREPARE} {' '.join(tmux)} {commands}; echo; exec sleep 1000"
    with subprocess.Popen(
        [*UNSHARE, "bash", "-c", script],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as world:
        try:
            assert world.stdout is not None
            assert world.stdout.readline() == b"\n", "there is no tmux"
            terminals = [Terminal(tmux, f"test:{number}") for number in range(count)]
            for terminal in terminals:
                terminal.until(terminal.prompts)
            yield terminals
        finally:
            world.kill()
