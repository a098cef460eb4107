"""What mount(8) calls for a file system of type fuse.vconfs: `vconfs DEVICE DIR -o OPTIONS`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

#: What stands in fstab for the embedded device, or for the one that the configuration names.
_NO_DEVICE = ("none", "vconfs")


def mount_words(words: Sequence[str]) -> list[str]:
    """Say the same as `vconfs mount` does; `-o config=FILE` is its --config FILE."""
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
