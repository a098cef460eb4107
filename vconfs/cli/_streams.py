"""Output in any locale and on any terminal: what cannot be shown is escaped, and ends nothing."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final

_ESCAPES: Final = "vconfs-escapes"
#: ASCII by another name: click takes "ascii" for a mistake, and writes UTF-8 instead.
_ASCII: Final = "vconfs_ascii"
#: Characters of our own texts, and what stands for them where the encoding lacks them.
_PLAIN: Final = {"…": "...", "→": "->"}


def escape_what_cannot_be_shown() -> None:
    """Escape the characters that the encoding of standard output and error lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            encoding = _ASCII if ascii_only else stream.encoding
            stream.reconfigure(encoding=encoding, errors=_ESCAPES)


def as_shown(text: str, encoding: str) -> str:
    """Return `text` as it is shown in this encoding."""
    return text.encode(encoding, _ESCAPES).decode(encoding)


def is_dumb() -> bool:
    """True if the terminal can only print lines."""
    return os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")


def shows_colours() -> bool | None:
    """Return False if there must be no colours; None if that depends on where the output goes."""
    return False if os.environ.get("NO_COLOR") or is_dumb() else None


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and (plain := _PLAIN.get(error.object[error.start])):
        return plain, error.start + 1
    return codecs.backslashreplace_errors(error)


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        codec.encode,
        codec.decode,
        incrementalencoder=codec.incrementalencoder,
        incrementaldecoder=codec.incrementaldecoder,
        name=_ASCII,
    )


codecs.register(_find_codec)
codecs.register_error(_ESCAPES, _escape)
