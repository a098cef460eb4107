"""What a person sees: the sessions of the pages, typed into a terminal and compared."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from .markdown import Block, blocks, same, steps
from .shell import REPOSITORY
from .terminal import open_terminals

pytestmark = [
    pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux"),
    pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare"),
]

WATCHING = REPOSITORY / "docs" / "howto" / "watching.md"


def block(page: Path, kind: str, title: str = "") -> Block:
    return next(it for it in blocks(page.read_text()) if (it.kind, it.title) == (kind, title))


def assert_shown(block: Block, screen: str) -> None:
    """Compare with what the page shows, rates apart, which are never the same."""

    def constant(text: str) -> str:
        return re.sub(r"connected +[1-9]\S* +[1-9]\S*", "connected RATE RATE", text)

    shown = constant("\n".join(block.lines))
    assert same(shown, constant(screen)), f"--- seen:\n{screen}\n--- shown:\n{shown}"


def test_the_session_of_the_readme(tmp_path: Path) -> None:
    session = block(REPOSITORY / "README.md", "console")
    with open_terminals(tmp_path) as (terminal,):
        for step in steps(session):
            terminal.run(step.command)
        assert_shown(session, terminal.screen().removesuffix("\n$"))


def test_watch_as_a_person_sees_it(tmp_path: Path) -> None:
    shown = block(WATCHING, "screen", "watch")
    with open_terminals(tmp_path, 2) as (watch, other):
        watch.run("vconfs mount --port chat=unix:/run/chat.sock,cache -o wait /mnt/vcon")
        watch.clear()
        watch.type("vconfs watch /mnt/vcon")
        other.run("until ls -l /proc/[0-9]*/fd 2>&1 | grep -q /.events; do :; done")
        other.run("echo hello >/mnt/vcon/by-name/chat")
        other.run("socat -u UNIX-CONNECT:/run/chat.sock,readbytes=6 -")
        watch.until(lambda screen: "disconnect" in screen)
        other.run("vconfs umount /mnt/vcon")
        screen = watch.until(watch.prompts)
        assert_shown(shown, screen.removesuffix("\n$"))


def test_top_as_a_person_sees_it(tmp_path: Path) -> None:
    shown = block(WATCHING, "screen", "top")
    ports = "--port ping=echo --port full=unix:/run/full.sock,cache,host-limit=1000"
    with open_terminals(tmp_path, 2) as (top, other):
        other.run(f"vconfs mount {ports} /mnt/vcon")
        other.run("head -c 1000 /dev/zero >/mnt/vcon/by-name/full")
        other.run("exec 3<>/mnt/vcon/by-name/ping")
        other.type("while echo ping >&3 && read -r pong <&3; do sleep 0.01; done")
        top.type("vconfs top --interval 0.2 /mnt/vcon")
        row = r"connected( +[1-9]\S*){2}  [▁▂▃▄▅▆▇█]{8} +0 +0%"
        screen = top.until(lambda screen: re.search(row, screen))
        screen = re.sub("[▁▂▃▄▅▆▇█]{8}", "▄▁█▇█▃▃▂", screen)  # as the page has it
        assert_shown(shown, screen)
        top.press("C-c")
        assert "Traceback" not in top.until(top.prompts)
