"""A guest that a test has booted, and the files into which it and its machine write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

#: How many lines of each file a failure shows. The report of a kernel's panic has about 40.
LINES = 50


class Booted:
    """A booted guest, whose folder has its console and what else LOGS names."""

    #: The names of the files, by what they have.
    LOGS: ClassVar[Mapping[str, str]] = {"the guest's console": "console.log"}

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def console(self) -> str:
        """All that the guest has said."""
        return _text(self.folder / "console.log")

    @property
    def ends(self) -> Mapping[str, str]:
        """The last lines of each file that has some, by what the file has."""
        texts = {title: _text(self.folder / name) for title, name in self.LOGS.items()}
        return {
            title: "\n".join(text.splitlines()[-LINES:]) for title, text in texts.items() if text
        }

    @property
    def said(self) -> str:
        """The same as a text for an error message."""
        parts = [f"the end of {title}:\n{text}" for title, text in self.ends.items()]
        return "\n".join(parts) or "nothing was said"


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
