"""The line of a key in a TOML file, as FILE:LINE for error messages. tomllib does not report it."""

from __future__ import annotations

import re


def place_of(key: str, text: str, file: str) -> str:
    """Return the line of a key, or of a table of that name, at the top level of the file.

    Return only the file if it is not found.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if _assigns(key, line) or re.match(rf"\s*\[+\s*{re.escape(key)}\s*\]", line):
            return f"{file}:{number}"
        if re.match(r"\s*\[", line):
            break
    return file


def place_in_array(key: str, array: str, index: int, text: str, file: str) -> str:
    """Return the line of a key in table `index` of `[[array]]`; of the table if `key` is empty.

    Return only the file if the array is written in another way, like `array = [{key = …}]`.
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
