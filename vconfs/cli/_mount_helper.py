"""The command line of mount(8) for the type fuse.vconfs: `vconfs SOURCE DIR -o OPTIONS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Sources that name no device: it is the embedded one, or that of the file of options.
_NO_DEVICE: Final = ("none", "vconfs")
#: Devices without a colon. They are not imported, because every command loads this module.
_DEVICES: Final = ("embedded", "kernel")


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
