"""The command line of mount(8) for the type fuse.vconfs: `vconfs SOURCE DIR -o OPTIONS`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

#: Sources that name no device: it is the embedded one, or that of the file of options.
_NO_DEVICE: Final = ("none", "vconfs")
#: Devices without a colon. They are not imported, because every command loads this module.
_DEVICES: Final = ("embedded", "kernel")
#: What mount(8) adds to all options. Left out, for it would replace the options of the file.
_ADDED: Final = "rw"


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
    `-o config=FILE` becomes --config FILE.
    """
    source, *rest = words
    device = [] if source in _NO_DEVICE else ["--device", source]
    return ["mount", *device, "--source", source, *_with_config(rest)]


def _with_config(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        if word != "-o":
            yield word
            continue
        options = next(rest, "").split(",")
        files = [option for option in options if option.startswith("config=")]
        if others := ",".join(it for it in options if it not in (*files, _ADDED)):
            yield from ("-o", others)
        yield from (f"--{file}" for file in files)
