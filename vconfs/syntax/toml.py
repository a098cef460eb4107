"""Where a key stands in a TOML file, as FILE:LINE: tomllib does not tell, and errors have to."""

from __future__ import annotations

import re


def place_of(key: str, text: str, file: str) -> str:
    """Find a key, or a table of that name, at the top of the file."""
    for number, line in enumerate(text.splitlines(), 1):
        if _assigns(key, line) or re.match(rf"\s*\[+\s*{re.escape(key)}\s*\]", line):
            return f"{file}:{number}"
        if re.match(r"\s*\[", line):
            break
    return file


def place_in_array(key: str, array: str, index: int, text: str, file: str) -> str:
    """Find a key in the table with this index of `[[array]]`; no key: find the table itself.

    Only the file, when the array is written in another way, like `array = [{key = …}]`.
    """
    header = re.compile(rf"\s*\[\[\s*{re.escape(array)}\s*\]\]")
    tables = -1
    for number, line in enumerate(text.splitlines(), 1):
        tables += header.match(line) is not None
        if tables == index and (not key or _assigns(key, line)):
            return f"{file}:{number}"
    return file


def _assigns(key: str, line: str) -> bool:
    return re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line) is not None
