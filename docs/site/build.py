"""Builds the site of docs/: `python docs/site/build.py FOLDER`, or `make site`.

The pages are those of docs/, in the order of the tables of docs/README.md, which is the first page.
That page also gets a picture of a terminal, with the commands that it shows. Diagrams are drawn,
other pictures are copied. Links to files outside of docs/, which the site has not, become text. A
link that leads nowhere is an error, and so is a page that docs/README.md does not name.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pictures

_HERE: Final = Path(__file__).parent
_DOCS: Final = _HERE.parent
_FIRST: Final = "README.md"
_PICTURE: Final = "terminal.svg"
#: The parts of the site after the first page: the name of each, and where its pages are.
_PARTS: Final = (("Guides", r"(howto|coming)"), ("Reference", "reference/"), ("Design", ""))
_MERMAID: Final = re.compile(r"^```mermaid\nstateDiagram-v2\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[([^]]*)\]\(((?!https?:)[^)#]+)(#[^)]*)?\)")


def first_page(text: str) -> str:
    """Return docs/README.md with the picture and, for the menu, the list of the other pages."""
    title, first, rest = text.split("\n\n", 2)
    image = f"![The commands of this page, in a terminal]({_PICTURE})"
    return "\n\n".join((title, first, image, rest.rstrip(), *_menus(text))) + "\n"


def _menus(text: str) -> list[str]:
    pages = [link[2] for link in _LINK.finditer(text)]
    menus = []
    for name, pattern in _PARTS:
        chosen = [page for page in pages if re.match(pattern, page)]
        pages = [page for page in pages if page not in chosen]
        menus.append("\n".join(("```{toctree}", ":hidden:", f":caption: {name}", *chosen, "```")))
    return menus


def without_links_out(text: str, folder: str) -> str:
    """Return a page of a folder of docs/ with those links as text that lead out of docs/."""

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        return link[0] if path.startswith("docs/") else f"{link[1]} (`{path}`)"

    return _LINK.sub(replaced, text)


def with_diagrams(text: str) -> str:
    """Return a page with its diagrams drawn."""
    return _MERMAID.sub(lambda block: pictures.diagram(block[1].splitlines()), text)


def write_source(folder: Path) -> None:
    """Write what Sphinx reads."""
    for image in _DOCS.rglob("*.svg"):
        copy = folder / image.relative_to(_DOCS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
    for page in _DOCS.rglob("*.md"):
        name = page.relative_to(_DOCS)
        text = without_links_out(page.read_text(encoding="utf-8"), str(name.parent))
        text = with_diagrams(text)
        text = re.sub("^```screen.*", "```console", text, flags=re.MULTILINE)
        if str(name) == _FIRST:
            (folder / _PICTURE).write_text(pictures.terminal(text), encoding="utf-8")
            text, name = first_page(text), Path("index.md")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def missing_pages() -> list[Path]:
    """Return the pages that docs/README.md does not name, and so are not in the menu."""
    first = (_DOCS / _FIRST).read_text(encoding="utf-8")
    named = {_DOCS / link[2] for link in _LINK.finditer(first)} | {_DOCS / _FIRST}
    return sorted(set(_DOCS.rglob("*.md")) - named)


def main(words: Sequence[str]) -> int:
    """Build the site in the folder that is named, anew."""
    (output,) = words
    shutil.rmtree(output, ignore_errors=True)
    for page in missing_pages():
        print(f"docs/{page.relative_to(_DOCS)}: docs/README.md does not name it", file=sys.stderr)
    with tempfile.TemporaryDirectory() as source:
        try:
            write_source(Path(source))
        except FileNotFoundError as error:
            if error.filename != pictures.DOT:
                raise
            print(
                "dot, which draws diagrams, is missing: apt-get install graphviz", file=sys.stderr
            )
            return 1
        sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
        folders = ["-d", f"{source}/.doctrees", "-c", str(_HERE), source, output]
        done = subprocess.run([*sphinx, *folders], stderr=subprocess.PIPE, text=True)
    print(done.stderr.replace(f"{source}/", "docs/"), end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
