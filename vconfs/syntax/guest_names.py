"""Names of guests, and texts in which %g is the name of one.

A name may come from a guest, and is put into paths and commands. So it has only characters that
mean nothing there.
"""

from __future__ import annotations

import os
import re
from typing import Final

#: As long as a host name can be.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MARK: Final = re.compile("%([%g])")
#: The longest beginning of a path whose last part has %g, where a further part follows.
_FOLDER: Final = re.compile(r"/[^,]*%g[^,/]*(?=/)")


def guest_name(name: str) -> str:
    """Return `name` if a guest can have it; raise ValueError if not."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 64 else f"{name[:64]}…"
        raise ValueError(
            f"{shown!r} cannot be the name of a guest: use up to 64 letters, digits, '.', '_' and"
            " '-', with a letter or digit first"
        )
    return name


def name_for(url: str) -> str:
    """Return the name for the guest of a listener: the file name of its path, or its address."""
    place = os.path.basename(url.removeprefix("stream:").partition(",")[0]).removesuffix(".sock")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", place).lstrip("._-")[:64] or "guest"


def fill_in(text: str, name: str) -> str:
    """Return `text` with the guest's name in place of each %g; %% becomes %."""
    return _MARK.sub(lambda found: name if found[1] == "g" else "%", text)


def folders_of(text: str, name: str) -> list[str]:
    """Return the folders of the paths in `text` that are made for this guest alone."""
    return [fill_in(found, name) for found in _FOLDER.findall(text)]
