"""The manual pages: nothing is missing, and man has nothing to say against them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vconfs.cli import host, mount, vconfs
from vconfs.cli._config import config_keys
from vconfs.cli._options import option_beginnings
from vconfs.cli._roff import escape, paragraph
from vconfs.cli.manual import command as write_manual
from vconfs.cli.manual import manual_pages
from vconfs.syntax.values import ACCESS_OPTIONS, OPTION_MEANINGS, PORT_OPTIONS

PAGES = sorted(manual_pages())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manual.main([str(tmp_path)], standalone_mode=False)
    return tmp_path


def rendered(page: Path) -> str:
    assert shutil.which("man"), "scripts/bootstrap installs man-db"
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(page)],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return re.sub(".\b", "", done.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_man_has_no_warnings(folder: Path, page: str) -> None:
    assert "VCONFS" in rendered(folder / page)


def shown_commands(group: click.Group, above: str) -> dict[str, click.Command]:
    """The commands of a group that are not hidden, by the name of their page."""
    context = click.Context(group, **group.context_settings)
    named = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {f"{above}-{name}": it for name, it in named.items() if it and not it.hidden}


def all_commands() -> dict[str, click.Command]:
    assert isinstance(vconfs, click.Group)
    return {"vconfs": vconfs, **shown_commands(vconfs, "vconfs")}


@pytest.mark.parametrize("name", all_commands())
def test_every_command_has_a_page_with_its_options(folder: Path, name: str) -> None:
    command = all_commands()[name]
    page = rendered(folder / f"man1/{name}.1")
    meaning = command.get_short_help_str(200).rstrip(".")
    assert f"{name} - {meaning}".casefold() in page.casefold()
    below = shown_commands(command, "").values() if isinstance(command, click.Group) else ()
    for option in [param for it in (command, *below) for param in it.params]:
        if isinstance(option, click.Option) and not option.hidden and name != "vconfs":
            assert all(text in page for text in option.opts)


def test_the_first_page_leads_to_all_others(folder: Path) -> None:
    page = rendered(folder / "man1/vconfs.1")
    for name in PAGES:
        title, section = Path(name).stem, Path(name).suffix[1:]
        assert title == "vconfs" or f"{title}(" in page.replace(" (", "("), (title, section)


def test_pages_name_only_pages_that_are_there(folder: Path) -> None:
    ours = {Path(name).name for name in PAGES}
    for name in PAGES:
        text = (folder / name).read_text()
        named = re.findall(r"^\.BR (\S*vconfs\S*) \((\d)\)", text, re.MULTILINE)
        assert {f"{title}.{section}" for title, section in named} <= ours - {Path(name).name}


@pytest.mark.parametrize("page", ["man1/vconfs-mount.1", "man8/mount.fuse.vconfs.8"])
def test_every_option_of_a_mount_has_its_place(folder: Path, page: str) -> None:
    text = rendered(folder / page)
    for option in {*OPTION_MEANINGS, *option_beginnings("")}:
        name = option.removesuffix("=")
        assert re.search(rf"^ .*\b{name}\b", text, re.MULTILINE), name


def test_every_key_of_the_files_has_its_place(folder: Path) -> None:
    page = rendered(folder / "man5/vconfs.toml.5")
    keys = [*config_keys(mount.command), *config_keys(host.command), *PORT_OPTIONS, *ACCESS_OPTIONS]
    for key in keys:
        assert re.search(rf"^ {{7}}{key}\b", page, re.MULTILINE), key


def test_every_option_has_a_meaning() -> None:
    assert {*PORT_OPTIONS, *ACCESS_OPTIONS, "drain", "tty", "allow_other"} == set(OPTION_MEANINGS)


def test_text_is_never_taken_for_a_request() -> None:
    assert escape(".so /etc/passwd") == r"\&.so /etc/passwd"
    assert escape(r"'a\b-c") == r"\&'a\eb\-c"
    assert list(paragraph("a\n .b")) == [".PP", "a .b"]


@pytest.mark.parametrize("name", ["", "ctl"])
def test_every_command_has_a_line(name: str) -> None:
    context = click.Context(vconfs, info_name="vconfs", **vconfs.context_settings)
    command = vconfs.get_command(context, name) if name else vconfs
    assert command is not None
    _, _, commands = command.get_help(click.Context(command, info_name=name)).partition("Commands:")
    assert commands
    assert "..." not in commands


def test_the_help_of_every_command_has_examples() -> None:
    without = [name for name, text in helps(vconfs, "vconfs") if not re.search("Examples?:", text)]
    assert without == []


def helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """The help of a command, and of those below it that are shown."""
    context = click.Context(command, info_name=name)
    yield name, command.get_help(context)
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below is not None
            if not below.hidden:
                yield from helps(below, f"{name} {word}")
