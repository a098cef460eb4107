"""Text from elsewhere, made fit to be shown to people.

The names of ports and programs, paths, and what a peer says as a reason may have anything in them:
sequences that set a terminal's title or colours, line ends that forge a line of a log, characters
that turn the direction of the text around. Everything that is written for people goes through
`printable`. What is written for programs (JSON, extended attributes) stays exact.
"""

from __future__ import annotations

import os


def printable(text: str | bytes) -> str:
    r"""Return `text` with each character escaped that is not printable: \xNN, \uNNNN, \UNNNNNNNN.

    Those are control characters (also the ends of lines), characters that only change how others
    are shown, unassigned ones and lone surrogates. A byte that is no UTF-8 is shown as \xNN.
    """
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # what os.fsdecode makes of a byte that is no text
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
