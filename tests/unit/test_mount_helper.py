"""The words that mount(8) calls us with, and what they are to `vconfs mount`."""

from __future__ import annotations

import pytest

from vconfs.cli._mount_helper import mount_words


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("none /mnt -o rw", "/mnt -o rw"),
        ("vconfs /mnt", "/mnt"),
        ("kernel /mnt -o rw,wait", "--device kernel /mnt -o rw,wait"),
        ("none /mnt -o rw,config=/etc/v.toml,wait", "/mnt -o rw,wait --config=/etc/v.toml"),
        ("none /mnt config=x", "/mnt config=x"),
    ],
)
def test_the_device_and_the_configuration_become_options(words: str, meaning: str) -> None:
    assert mount_words(words.split()) == ["mount", *meaning.split()]
