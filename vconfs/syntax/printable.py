"""Escaping text from elsewhere, so that it is safe to show to people.

The names of ports and programs, paths, and the reasons that a peer sends can contain anything:
sequences that set a terminal's title or colours, line ends that forge log lines, characters that
reverse the direction of the text. All text written for people goes through `printable`. Text
written for programs (JSON, extended attributes) stays exact.
"""

from __future__ import annotations

import os


def printable(text: str | bytes) -> str:
    r"""Return `text` with non-printable characters escaped: \xNN, \uNNNN, \UNNNNNNNN.

    These are control characters (line ends included), characters that only change how others are
    shown, unassigned ones and lone surrogates. A byte that is not UTF-8 is shown as \xNN.
    """
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode makes this of a byte that is not UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
