"""The words that mount(8) calls us with, and what they are to `vconfs mount`."""

from __future__ import annotations

import pytest

from vconfs.cli._mount_helper import helper_words, is_mount_helper_call, mount_words
from vconfs.cli._options import with_config
from vconfs.guest.devices import DEVICES


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("none /mnt -o rw", "--source none /mnt -o rw"),
        ("vconfs /mnt", "--source vconfs /mnt"),
        ("kernel /mnt -o rw,wait", "--device kernel --source kernel /mnt -o rw,wait"),
        ("none /mnt config=x", "--source none /mnt config=x"),
    ],
)
def test_the_device_becomes_an_option(words: str, meaning: str) -> None:
    assert mount_words(words.split()) == ["mount", *meaning.split()]


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("/mnt -o rw,wait", "/mnt -o wait"),
        ("/mnt -o rw,config=/etc/v.toml", "/mnt --config=/etc/v.toml"),
        ("-o config=/v.toml,wait --once", "-o wait --config=/v.toml --once"),
        ("-oconfig=/v.toml,wait", "-o wait --config=/v.toml"),
        ("--options config=/v.toml", "--config=/v.toml"),
        ("--options=wait,config=/v.toml", "-o wait --config=/v.toml"),
        ("--once /mnt config=x", "--once /mnt config=x"),
        ("/mnt -o", "/mnt -o"),
    ],
)
def test_a_file_of_options_may_stand_among_the_options(words: str, meaning: str) -> None:
    assert list(with_config(words.split())) == meaning.split()


@pytest.mark.parametrize("device", [it for it in DEVICES if it in ("embedded", "kernel")])
def test_a_device_without_a_colon_is_known(device: str) -> None:
    assert is_mount_helper_call([device, "/mnt"])


@pytest.mark.parametrize(
    ("words", "by_mount"),
    [
        ("none /mnt", True),
        ("stream:unix:/run/s /mnt", True),
        ("ports /mnt -o rw", True),
        ("unmount /mnt", False),
        ("-V /mnt", False),
        ("none", False),
    ],
)
def test_a_misspelt_command_is_not_a_device(words: str, by_mount: bool) -> None:
    assert is_mount_helper_call(words.split()) == by_mount


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("none /mnt -o rw", "none /mnt -o rw"),
        ("none /mnt", "none /mnt"),
        ("ports /mnt -s -n -v -o rw,wait", "ports /mnt -o rw,wait"),
        ("none /mnt -o rw -t fuse.vconfs", "none /mnt -o rw"),
        ("mount /mnt -n", "mount /mnt"),
        ("--help", "--help"),
    ],
)
def test_the_flags_of_a_mount_helper_are_not_ours(words: str, meaning: str) -> None:
    assert helper_words(words.split()) == meaning.split()


def test_a_fake_mount_mounts_nothing() -> None:
    assert helper_words(["none", "/mnt", "-f", "-o", "rw"]) is None
