"""The command line of mount(8) for the type fuse.vconfs: `vconfs DEVICE DIR -o OPTIONS`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

#: What fstab has for the embedded device, or for a device that the file of options names.
_NO_DEVICE = ("none", "vconfs")


def mount_words(words: Sequence[str]) -> list[str]:
    """Return the same command line for `vconfs mount`; `-o config=FILE` becomes --config FILE."""
    device, *rest = words
    return ["mount", *([] if device in _NO_DEVICE else ["--device", device]), *_with_config(rest)]


def _with_config(words: Sequence[str]) -> Iterator[str]:
    before = ""
    for word in words:
        if before == "-o":
            options = word.split(",")
            files = [option for option in options if option.startswith("config=")]
            yield ",".join(option for option in options if option not in files)
            for file in files:
                yield f"--{file}"
        else:
            yield word
        before = word
