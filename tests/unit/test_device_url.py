"""DEVICE urls: the options behind an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from vconfs.device.qtest import QtestAddress
from vconfs.device.vfio import VfioAddress
from vconfs.guest.devices import parse_device


@pytest.mark.parametrize(
    ("rest", "address"),
    [
        ("dir", QtestAddress(Path("dir"))),
        ("dir,addr=1f.7", QtestAddress(Path("dir"), 0x1F, 7)),
        ("dir,resize=rows-first", QtestAddress(Path("dir"), resize_rows_first=True)),
        ("dir,resize=rows-first,addr=4", QtestAddress(Path("dir"), 4, 0, True)),
        ("dir,addr=4,resize=cols-first", QtestAddress(Path("dir"), 4)),
    ],
)
def test_qtest(rest: str, address: QtestAddress) -> None:
    assert QtestAddress.parse(rest) == address


@pytest.mark.parametrize(
    ("rest", "address"),
    [
        ("00:05.0", VfioAddress("0000:00:05.0")),
        ("0000:00:05.0,resize=rows-first", VfioAddress("0000:00:05.0", True)),
    ],
)
def test_pci(rest: str, address: VfioAddress) -> None:
    assert VfioAddress.parse(rest) == address


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pci:5", "'5' is no PCI address"),
        ("pci:00:05.0,addr=1", "unknown option of pci: 'addr=1': it is resize="),
        ("pci:00:05.0,resize", "unknown option of pci: 'resize'"),
        ("pci:00:05.0,resize=upside-down", "cols-first or rows-first, not 'upside-down'"),
        ("pci:00:05.0,resize=rows-first,resize=rows-first", "resize is given twice"),
        ("qtest:", "needs the directory"),
        ("qtest:,addr=4", "needs the directory"),
        ("qtest:dir,", "unknown option of qtest: ''"),
        ("qtest:dir,addr", "unknown option of qtest: 'addr'"),
        ("qtest:dir,addr=4,addr=4", "addr is given twice"),
        ("qtest:dir,addr=20", "'20' is no SLOT.FUNCTION"),
        ("qtest:dir,addr=4.8", "'4.8' is no SLOT.FUNCTION"),
        ("qtest:dir,window=1", "unknown option of qtest: 'window=1': it is addr=.* or resize="),
    ],
)
def test_what_makes_no_sense_is_said(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_device(url)
