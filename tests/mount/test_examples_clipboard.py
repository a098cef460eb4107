"""The example of a shared clipboard: of a file, of Wayland and of X, whose tools are faked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from .conftest import Mounted, OpenMount, program
from .examples import EXAMPLES, kill_session, needs_inotifywait, put_in_path

#: What stands in for the session's tools: the file in $SESSION is the clipboard.
_TAKE = 'cat >"$SESSION.new"; mv "$SESSION.new" "$SESSION"'
_GIVE = 'cat "$SESSION"'
_WATCH = 'exec inotifywait -qm -e close_write,moved_to --format "" "${SESSION%/*}"'
TOOLS = {
    "wl-copy": _TAKE,
    "wl-paste": f'if [ "$*" = "--watch echo changed" ]; then {_WATCH}; else {_GIVE}; fi',
    "xclip": f'if [ "$*" = "-selection clipboard -in" ]; then {_TAKE}; else {_GIVE}; fi',
}
#: How each kind of clipboard is found, beside the tools.
KINDS = {
    "file": "CLIPBOARD={clip}",
    "wayland": "WAYLAND_DISPLAY=wayland-0",
    "x": "DISPLAY=:0",
}


@pytest.fixture(params=sorted(KINDS))
def clipboard(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The environment of a session with that kind of clipboard; {clip} is its file."""
    for name, script in TOOLS.items():
        put_in_path(tmp_path / "bin", name, script)
    path = f"PATH={tmp_path}/bin:{os.environ['PATH']}"
    unset = [f"--unset={name}" for name in ("CLIPBOARD", "WAYLAND_DISPLAY", "DISPLAY")]
    return [*unset, path, f"TMPDIR={tmp_path}", "SESSION={clip}", KINDS[request.param]]


@needs_inotifywait
async def test_a_clipboard_is_shared_both_ways(
    mounted: OpenMount, tmp_path: Path, shell: list[str], clipboard: list[str]
) -> None:
    clips = {}
    for end in ("guest", "host"):
        (tmp_path / end).mkdir()
        clips[end] = tmp_path / end / "clip"
        clips[end].touch()
    async with mounted(f"clip=pipe:{tmp_path}/port") as it:
        ports = {"guest": [str(it.file())], "host": [f"{tmp_path}/port.{w}" for w in ("out", "in")]}
        words = {
            end: [
                "env",
                *(word.format(clip=clips[end]) for word in clipboard),
                *shell,
                str(EXAMPLES / "clipboard.sh"),
            ]
            for end in clips
        }
        async with (
            program("setsid", *words["guest"], *ports["guest"]) as guest,
            program("setsid", *words["host"], *ports["host"]) as host,
        ):
            try:
                text = "two lines\nof ünicode\n" + "x" * 200_000
                for end, other in (("guest", "host"), ("host", "guest")):
                    text += end
                    await until_copied(it, clips[end], clips[other], text)
            finally:
                for process in (guest, host):
                    await kill_session(process)


async def until_copied(it: Mounted, here: Path, there: Path, text: str) -> None:
    """Write a text at one end, again and again until the other end listens, and see it there."""
    with trio.fail_after(10):
        while not there.exists() or there.read_text() != text:
            here.write_text(text)
            with trio.move_on_after(0.5):
                await it.until(lambda: there.exists() and there.read_text() == text)
