"""The fenced blocks of a Markdown page, and the commands in them.

A block of kind `console` holds commands and what they print, as a terminal shows them:

    $ command           with "> " before each further line of it
    what it prints

"..." in what it prints stands for anything in that line, and on a line of its own for any lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import frozen

_FENCE: Final = re.compile(r"(?P<indent> *)```(?P<kind>\S*) *(?P<title>.*)")

#: What is another thing each time: clock times, numbers of ptys and of processes, and columns.
_CHANGING: Final = (
    (re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b"), "HH:MM:SS"),
    (re.compile(r"/dev/pts/\d+"), "/dev/pts/N"),
    (re.compile(r"\b\d+ (vconfs|cat|bash|sh|dd|socat)\b"), r"PID \1"),
    (re.compile(r"(?<=\S) {2,}"), "  "),
    (re.compile(r" +$", re.MULTILINE), ""),
)


@frozen
class Block:
    """A fenced block: where it begins, what kind it is, and its lines."""

    line: int
    kind: str
    title: str
    lines: tuple[str, ...]


@frozen
class Step:
    """A command and what it prints."""

    line: int
    command: str
    prints: str


def blocks(text: str) -> Iterator[Block]:
    """Return the fenced blocks of a page. Raise ValueError if one does not end."""
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        if not (begin := _FENCE.fullmatch(line)):
            continue
        inside: list[str] = []
        for _, more in lines:
            if more.strip() == "```":
                break
            inside.append(more.removeprefix(begin["indent"]))
        else:
            raise ValueError(f"the block in line {number} does not end")
        yield Block(number, begin["kind"], begin["title"], tuple(inside))


def steps(block: Block) -> list[Step]:
    """Return the commands of a block. Raise ValueError if it does not begin with one."""
    found: list[tuple[int, list[str], list[str]]] = []
    for number, line in enumerate(block.lines, block.line + 1):
        if line.startswith("$ "):
            found.append((number, [line[2:]], []))
        elif not found:
            raise ValueError(f"line {number}: a block begins with a command, not {line!r}")
        elif (line == ">" or line.startswith("> ")) and not found[-1][2]:
            found[-1][1].append(line[2:])
        else:
            found[-1][2].append(line)
    return [Step(line, "\n".join(words), "\n".join(out)) for line, words, out in found]


def normalised(text: str) -> str:
    """Write what is another thing each time always in the same way."""
    for pattern, constant in _CHANGING:
        text = pattern.sub(constant, text)
    return text.strip("\n")


def same(shown: str, printed: str) -> bool:
    """Return True if a page shows what was printed."""
    return bool(re.fullmatch(_pattern(normalised(shown).split("\n")), normalised(printed) + "\n"))


def _pattern(lines: Iterable[str]) -> str:
    return "".join(
        r"(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n"
        for line in lines
    )
