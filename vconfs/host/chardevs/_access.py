"""The options mode, owner and group of chardevs that make a file, socket, fifo or pty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vconfs.syntax.values import parse_group, parse_mode, parse_user
from vconfs.system.file_access import PRIVATE, FileAccess

ACCESS_FORMS: Final = ("mode=MODE", "owner=USER", "group=GROUP")


def file_access(options: Mapping[str, str]) -> FileAccess:
    """Return what the options ask for. Raise ValueError if one is wrong."""
    return FileAccess(
        parse_mode("mode", options["mode"]) if "mode" in options else PRIVATE,
        parse_user("owner", options["owner"]) if "owner" in options else -1,
        parse_group("group", options["group"]) if "group" in options else -1,
    )
