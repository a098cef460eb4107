"""Globs of paths as users write them: /run/vm/*/*, or with the guest's name /run/vm/%g.*."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import translate
from typing import Final

from attrs import frozen

from vconfs.syntax.paths import path_argument

#: What has a meaning in a part of a path: `%g` and `%%`, and what it has in a shell.
_TOKEN: Final = re.compile(r"%[%g]|\*|\?|\[!?\]?[^\]]*\]")
_GUEST: Final = "%g"
#: What `translate` puts around a pattern: (?s:…)\Z
_BEFORE, _AFTER = len("(?s:"), -len(r")\Z")


@frozen
class Part:
    """One part of a glob: a name, or a pattern for names."""

    #: The name, if it is not a pattern.
    name: str
    pattern: re.Pattern[str] | None = None

    @property
    def names_guest(self) -> bool:
        """True if it has the guest's name in it."""
        return self.pattern is not None and "guest" in self.pattern.groupindex

    def match(self, name: str) -> re.Match[str] | None:
        """Match a name with the pattern. A hidden name needs a pattern that begins with a dot."""
        assert self.pattern is not None
        if name.startswith(".") and not self.pattern.pattern.startswith(r"\."):
            return None
        return self.pattern.fullmatch(name)


@frozen
class Glob:
    """A glob of whole paths, each with the name of the guest that the file is for."""

    #: The parts of the folders, and that of the files.
    folders: Sequence[Part]
    files: Part

    @property
    def names_guests(self) -> bool:
        """True if a part has the guest's name; else it is the name of the folder of the file."""
        return any(part.names_guest for part in (*self.folders, self.files))


def parse_glob(kind: str, text: str) -> Glob:
    """Parse a glob of whole paths. Raise ValueError if it is wrong.

    `*`, `?` and `[…]` mean what they mean in a shell, within one part of the path. `%g` is the
    guest's name, of at least one character; `%%` is one `%`. From left to right, each `*` and `%g`
    matches as few characters as it can.
    """
    path_argument(kind, text)
    if not text.startswith("/"):
        raise ValueError(f"{kind} needs whole paths, from / on, not {text!r}")
    names = [name for name in text.split("/") if name not in ("", ".")]
    if ".." in names:
        raise ValueError(f"{kind}: write the path without ..: {text}")
    if any("**" in name for name in names):
        raise ValueError(f"{kind}: ** is not known: write a * for each folder: {text}")
    if text.endswith(("/", "/.")) or len(names) < 2:
        raise ValueError(f"{kind} needs a pattern for files in folders, like {text.rstrip('/')}/*")
    if [token for name in names for token in _TOKEN.findall(name)].count(_GUEST) > 1:
        raise ValueError(f"{kind}: {_GUEST} can be there once: {text}")
    *folders, files = map(_parse_part, names)
    return Glob(tuple(folders), files)


def _parse_part(text: str) -> Part:
    if all(token == "%%" for token in _TOKEN.findall(text)):
        return Part(text.replace("%%", "%"))
    return Part("", re.compile("".join(_patterns(text)), re.DOTALL))


def _patterns(text: str) -> Iterator[str]:
    end = 0
    for token in _TOKEN.finditer(text):
        yield re.escape(text[end : token.start()])
        end = token.end()
        match token[0]:
            case "%%":
                yield "%"
            case "%g":
                yield "(?P<guest>.+?)"
            case "*":
                yield ".*?"
            case wild:
                yield translate(wild)[_BEFORE:_AFTER]
    yield re.escape(text[end:])
