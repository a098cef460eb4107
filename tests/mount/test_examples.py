"""The examples run as they are, against a mount."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from vconfs.host.spec import parse_port

from .conftest import Mounted, OpenMount, in_thread, program

EXAMPLES = Path(__file__).parents[2] / "examples"
SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}

needs_inotifywait = pytest.mark.skipif(
    not shutil.which("inotifywait") or not shutil.which("getfattr"),
    reason="needs inotifywait and getfattr",
)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say() -> None:
    scripts = sorted(EXAMPLES.glob("*.sh"))
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.fixture(params=sorted(SHELLS))
def shell(request: pytest.FixtureRequest) -> list[str]:
    words = SHELLS[request.param]
    if not shutil.which(words[0]):
        pytest.skip(f"needs {words[0]}")
    return words


def links(folder: Path) -> dict[str, str]:
    return {path.name: path.readlink().name for path in folder.iterdir() if path.is_symlink()}


async def changes_to(folder: Path, wanted: dict[str, str], it: Mounted) -> None:
    """Wait until the links are those."""
    with trio.move_on_after(10):
        await it.until(lambda: folder.is_dir() and links(folder) == wanted)
    assert links(folder) == wanted


@asynccontextmanager
async def linking(it: Mounted, shell: list[str], folder: Path) -> AsyncIterator[trio.Process]:
    script = EXAMPLES / "udev-links.sh"
    async with program("setsid", *shell, str(script), str(it.path), str(folder)) as running:
        try:
            yield running
        finally:
            await trio.run_process(["pkill", "-KILL", "-s", str(running.pid)], check=False)


@needs_inotifywait
async def test_links_by_name_follow_hot_plug_renaming_and_removal(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    folder = tmp_path / "links"
    async with mounted("org.a=echo", "=echo", "dir/100%=echo") as it:
        async with linking(it, shell, folder):
            first = {"org.a": "vcon0", "dir%2F100%25": "vcon2"}
            await changes_to(folder, first, it)
            await it.host.add(parse_port("new=echo"))
            await changes_to(folder, {**first, "new": "vcon3"}, it)
            it.host.rename(3, b"renamed")
            await changes_to(folder, {**first, "renamed": "vcon3"}, it)
            it.host.rename(1, b"org.a")  # the one with the lowest number keeps it
            it.manager.remove(3)
            await changes_to(folder, first, it)
            it.manager.remove(0)
            await changes_to(folder, {"org.a": "vcon1", "dir%2F100%25": "vcon2"}, it)
            assert await in_thread((folder / "org.a").exists)


@needs_inotifywait
async def test_what_is_no_link_is_left_alone(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "taken").write_text("precious")
    async with mounted("taken=echo", "free=echo") as it, linking(it, shell, folder):
        await changes_to(folder, {"free": "vcon1"}, it)
        assert (folder / "taken").read_text() == "precious"


@needs_inotifywait
async def test_the_links_go_with_the_mount(mounted: OpenMount, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    async with mounted("a=echo") as it, linking(it, ["dash"], folder) as running:
        await changes_to(folder, {"a": "vcon0"}, it)
        await trio.run_process(["umount", "-l", str(it.path)])
        with trio.fail_after(10):
            assert await running.wait() == 0
        assert links(folder) == {}


async def test_a_folder_that_is_no_mount_is_refused(tmp_path: Path, shell: list[str]) -> None:
    script = str(EXAMPLES / "udev-links.sh")
    for arguments, code in (([], 2), ([str(tmp_path), str(tmp_path)], 1)):
        done = await trio.run_process(
            [*shell, script, *arguments], check=False, capture_stdout=True, capture_stderr=True
        )
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == 1
