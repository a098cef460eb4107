"""The pictures of the site, drawn from what the pages say. They load nothing from elsewhere."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

_CONSOLE: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND: Final = re.compile(r"[$>] ")
#: Rich's own format loads a font.
_FOREIGN: Final = re.compile(r"@font-face \{\{.*?\}\}|<!--.*?-->", re.DOTALL)

#: The program that draws diagrams.
DOT: Final = "dot"

_STYLE: Final = (
    'node [shape=box style=rounded fontname="sans-serif"]',
    'edge [fontname="sans-serif" fontsize=11]',
    "bgcolor=transparent ranksep=0.6 nodesep=0.4",
)

#: Seconds before a command is shown, and before what it prints.
_PAUSE: Final = 0.7
_PAUSE_OF_OUTPUT: Final = 0.1

_MOVING: Final = """
    @media (prefers-reduced-motion: no-preference) {
        @keyframes shown { from { opacity: 0 } }
        .vconfs-matrix text { animation: shown 0.1s step-end backwards }
%s
    }
    </style>"""


def terminal(page: str) -> str:
    """Return a terminal, as SVG, in which the commands of a page and what they print appear."""
    lines = [line for block in _CONSOLE.findall(page) for line in block.splitlines()]
    width = max(map(len, lines)) + 1
    console = Console(record=True, width=width, file=io.StringIO(), legacy_windows=False)
    for line in lines:
        console.print(Text(line, style="bold green" if _COMMAND.match(line) else ""))
    still = console.export_svg(
        title="vconfs", unique_id="vconfs", code_format=_FOREIGN.sub("", CONSOLE_SVG_FORMAT)
    )
    return still.replace("</style>", _MOVING % "\n".join(_delays(lines)), 1)


def _delays(lines: Sequence[str]) -> Iterator[str]:
    """Yield CSS that shows one line after the other."""
    pauses = (_PAUSE if _COMMAND.match(line) else _PAUSE_OF_OUTPUT for line in lines)
    for number, delay in enumerate(accumulate(pauses)):
        text = f'text[clip-path="url(#vconfs-line-{number})"]'
        yield f"        .vconfs-matrix {text} {{ animation-delay: {delay:.1f}s }}"


def diagram(lines: Iterable[str]) -> str:
    """Return a state diagram, written as Mermaid does, as SVG in the colours of the page.

    It takes `[*] --> STATE`, `STATE --> [*]`, `STATE: words` and `STATE --> STATE: event`.
    """
    return _in_colours_of_page(_drawn("\n".join(["digraph {", *_STYLE, *_graph(lines), "}"])))


def _graph(lines: Iterable[str]) -> Iterator[str]:
    """Yield a state diagram in the language of dot."""
    for number, line in enumerate(lines):
        left, _, words = line.strip().partition(": ")
        here, arrow, there = left.replace("[*]", f"end{number}").partition(" --> ")
        if "[*]" in left:
            yield f'end{number} [shape=point width=0.15 label=""]'
        yield f'{here} -> {there} [label=" {words} "]' if arrow else f'{here} [label="{words}"]'


def _drawn(graph: str) -> str:
    done = subprocess.run([DOT, "-Tsvg"], input=graph, capture_output=True, text=True, check=True)
    return done.stdout[done.stdout.index("<svg") :].rstrip()


def _in_colours_of_page(svg: str) -> str:
    svg = re.sub(r"<!--.*?-->\n|<title>.*?</title>\n", "", svg, flags=re.DOTALL)
    svg = re.sub('(fill|stroke)="black"', r'\1="currentColor"', svg)
    svg = svg.replace("<text ", '<text fill="currentColor" ')
    size = 'role="img" style="max-width: 100%; height: auto"'
    return re.sub(r'width="\S+"\s+height="\S+"', size, svg, count=1)
