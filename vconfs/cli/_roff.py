"""Parts of a manual page, as lines of roff with the man macros."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


def head(name: str, section: int, meaning: str) -> Iterator[str]:
    """Yield the head of a page."""
    yield f'.TH {name.upper()} {section} "" vconfs'
    yield from (".SH NAME", rf"{name} \- {escape(meaning)}")


def see_also(*pages: str) -> Iterator[str]:
    """Yield the section that names other pages, like "mount (8)"."""
    last = len(pages) - 1
    yield ".SH SEE ALSO"
    for index, page in enumerate(pages):
        yield f".BR {page}" + (" ," if index < last else "")


def paragraph(text: str) -> Iterator[str]:
    """Yield a filled paragraph."""
    yield ".PP"
    yield escape(" ".join(text.split()))


def literal(lines: list[str]) -> Iterator[str]:
    """Yield lines unfilled and indented."""
    if lines:
        yield from (".RS 4", ".nf", *map(escape, lines), ".fi", ".RE")


def table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield terms with their meanings."""
    for term, meaning in rows:
        yield from (".TP", rf"\fB{escape(term)}\fR", escape(meaning))


def escape(text: str) -> str:
    """Escape text so that roff prints all of it as it is."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^(?=[.'])", r"\&", text)
