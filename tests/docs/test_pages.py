"""Every command in the documentation does what the page says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from vconfs.cli import vconfs
from vconfs.guest.devices import EMBEDDED, parse_device
from vconfs.host.listeners import parse_listener
from vconfs.mirror.sockets import Sockets

from .markdown import blocks, same, steps
from .shell import REPOSITORY, open_shell

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.limit(180)  # a page is long, and each of its commands has a limit of its own
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_print_what_the_page_shows(page: Path) -> None:
    todo = [
        step
        for block in blocks(page.read_text())
        if block.kind == "console"
        for step in steps(block)
    ]
    if not todo:
        return
    with open_shell() as shell:
        for step in todo:
            printed = shell.run(step.command)
            where = f"{name(page)}:{step.line}: $ {step.command}"
            assert same(step.prints, printed), (
                f"{where}\n--- printed:\n{printed}--- shown:\n{step.prints}"
            )


def test_each_test_that_a_page_names_is_there() -> None:
    """By its own name, or by that of its file, with or without its folder."""
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`((?:tests/\w+/)?test_\w+(?:\.py)?)`", text))
    files = list((REPOSITORY / "tests").glob("**/test_*.py"))
    there = {name(file) for file in files} | {file.name for file in files}
    for file in files:
        there.update(re.findall(r"def (test_\w+)", file.read_text()))
    assert len(named) > 50
    assert sorted(named - there) == []


def test_each_complaint_has_its_test() -> None:
    page = (REPOSITORY / "docs" / "coming-from-virtio-ports.md").read_text()
    tests = (REPOSITORY / "tests" / "mount" / "test_complaints.py").read_text()
    named = re.findall(r"`(test_\w+)` \|", page)
    assert sorted(named) == sorted(re.findall(r"^async def (test_\w+)", tests, re.MULTILINE))


#: `console`: run here. `screen`: typed into a terminal, in test_terminal.py. `sh`: commands that
#: need another machine or change this one. The others hold no commands.
KINDS = {"console", "screen", "sh", "text", "toml", "python", "mermaid", "xml"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_only_console_blocks_have_commands(page: Path) -> None:
    for block in blocks(page.read_text()):
        assert block.kind in KINDS, f"{name(page)}:{block.line}"
        if block.kind not in ("console", "screen"):
            assert not [line for line in block.lines if line.startswith("$ ")]


def joined(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each command of a block and the number of its first line."""
    command, first = "", 0
    for number, line in enumerate(lines):
        command, first = command + line.removesuffix("\\"), first if command else number
        if not line.endswith("\\"):
            yield first, command
            command = ""


SH_LINES = [
    pytest.param(line, id=f"{name(page)}:{block.line + 1 + number}")
    for page in PAGES
    for block in blocks(page.read_text())
    if block.kind == "sh"
    for number, line in joined(block.lines)
]
#: The examples of the commands' help: a remark may stand behind many spaces.
HELP_LINES = [
    re.split(r" {3,}", line.strip())[0]
    for block in blocks((REPOSITORY / "docs/reference/commands.md").read_text())
    if block.lines[0] == "Examples:"
    for line in block.lines[1:]
    if line.strip().startswith("vconfs ")
]


@pytest.mark.parametrize("line", SH_LINES)
def test_commands_for_other_machines_are_commands(line: str) -> None:
    """They cannot be run here, but must be what they would be run as."""
    words = shlex.split(line, comments=True)
    if words[0] == "vconfs":
        check_vconfs(words[1:])
    elif words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, check=True, timeout=20)
    else:
        program = words[0] if "/" not in words[0] else REPOSITORY / words[0]
        assert shutil.which(program), f"{program} is no program"
        for word in words[1:]:
            if word.startswith(("examples/", "systemd/")):
                assert (REPOSITORY / word).is_file()


@pytest.mark.parametrize("line", HELP_LINES)
def test_examples_of_the_help_are_commands(line: str) -> None:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    ends = [place for place, word in enumerate(words) if set(word) <= set("|&;<>")]
    check_vconfs(words[1 : ends[0] if ends else None])


def check_vconfs(words: list[str]) -> None:
    """Read a command line as vconfs does, up to where it would do something."""
    command = vconfs.get_command(click.Context(vconfs, **vconfs.context_settings), words[0])
    assert command is not None, words[0]
    context = command.make_context(words[0], words[1:])
    url = context.params.get("device", EMBEDDED)  # checked by the option, but for the others'
    if url != EMBEDDED and not Sockets.has(url):
        parse_device(url, context.params["dialect"], bind=context.params["bind"])
    for listen in context.params.get("urls", ()):
        parse_listener(listen, context.params["dialect"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have where it is shown."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
