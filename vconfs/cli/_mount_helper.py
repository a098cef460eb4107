"""The command line of mount(8) for the type fuse.vconfs: `vconfs SOURCE DIR -o OPTIONS`.

mount(8) starts mount.fuse.vconfs, if it is installed, with flags of its own. Otherwise it starts
mount.fuse of the package fuse3, which starts vconfs without such flags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

#: Sources that name no device: it is the embedded one, or that of the file of options.
_NO_DEVICE: Final = ("none", "vconfs")
#: Devices without a colon. They are not imported, because every command loads this module.
_DEVICES: Final = ("embedded", "kernel")
#: The name of a mount helper of its own, which mount(8) prefers to mount.fuse.
_HELPER: Final = "mount.fuse.vconfs"
#: Flags of mount(8) that do nothing here: accept unknown options, no mtab, be verbose.
_NO_MEANING: Final = ("-s", "-n", "-v")
_FAKE: Final = "-f"


def is_mount_helper(program: str) -> bool:
    """True if the program was started as a mount helper of its own."""
    return os.path.basename(program) == _HELPER


def helper_words(words: Sequence[str]) -> list[str] | None:
    """Return the command line of a mount helper as SOURCE, DIR and `-o OPTIONS`.

    Return None if nothing is to be mounted (`mount -f`). Flags of mount(8) differ from those of
    `vconfs mount` in their meaning.
    """
    if _FAKE in words:
        return None
    kept = list(words)
    if "-t" in words:  # and the type
        at = words.index("-t")
        del kept[at : at + 2]
    return [word for word in kept if word not in _NO_MEANING]


def is_mount_helper_call(words: Sequence[str]) -> bool:
    """True if mount(8) may have written this command line, and not a person.

    The source is a device or says that there is none, or `-o` follows the folder, as it always does
    when mount(8) calls.
    """
    if len(words) < 2 or words[0].startswith("-"):
        return False
    source = words[0]
    return source in (*_NO_DEVICE, *_DEVICES) or ":" in source or words[2:3] == ["-o"]


def mount_words(words: Sequence[str]) -> list[str]:
    """Return the same command line for `vconfs mount`.

    /proc/mounts shows the source as it was given, so that mount(8) sees that it is mounted.
    """
    source, *rest = words
    device = [] if source in _NO_DEVICE else ["--device", source]
    return ["mount", *device, "--source", source, *rest]
