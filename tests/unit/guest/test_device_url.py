"""DEVICE urls: the options behind an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from vconfs.device.qtest.machine import QtestAddress
from vconfs.device.vfio import VfioAddress
from vconfs.guest.devices import parse_device
from vconfs.streams._line_addresses import ExecAddress
from vconfs.streams._socket_addresses import UnixAddress
from vconfs.streams.stream_address import StreamAddress
from vconfs.streams.url import parse_stream_address


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
        ("pci:5", "'5' is not a PCI address"),
        ("pci:00:05.0,addr=1", "unknown option of pci: 'addr=1': it is resize="),
        ("pci:00:05.0,resize", "resize needs a value: resize="),
        ("pci:00:05.0,resize=upside-down", "cols-first or rows-first, not 'upside-down'"),
        ("pci:00:05.0,resize=rows-first,resize=rows-first", "resize is given twice"),
        ("qtest:", "needs the directory"),
        ("qtest:,addr=4", "needs the directory"),
        ("qtest:dir,", "unknown option of qtest: ''"),
        ("qtest:dir,addr", "addr needs a value: addr=SLOT.FUNCTION"),
        ("qtest:dir,addr=4,addr=4", "addr is given twice"),
        ("qtest:dir,addr=20", "'20' is not a SLOT.FUNCTION"),
        ("qtest:dir,addr=4.8", "'4.8' is not a SLOT.FUNCTION"),
        ("qtest:dir,window=1", "unknown option of qtest: 'window=1': it is addr=.* or resize="),
        ("vhost-user:/run/s,inband=1", "unknown option of vhost-user: 'inband=1': it has none"),
        ("stream:unix:/run/s,windw=1", "unknown option of unix: 'windw=1': it is window="),
        ("stream:tty:/dev/ttyS0,speed=9600", "unknown option of tty: 'speed=9600': it is baud="),
        ("stream:tcp:host:1,window", "window needs a value: window=SIZE"),
        ("stream:vsock:2:5,x", "unknown option of vsock: 'x'"),
        ("stream:stdio,x", "unknown option of stdio: 'x'"),
        ("stream:exec:cat,window=1", "window is a size in bytes, or like 64K, 4M, 1G, from 1K to"),
    ],
)
def test_wrong_urls_have_a_clear_error(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_device(url)


@pytest.mark.parametrize(
    ("rest", "address"),
    [
        ("unix:/run/a,,b,window=4096", UnixAddress(path="/run/a,b", window=4096)),
        ("exec:env a=1,b=2 cat", ExecAddress(command="env a=1,b=2 cat")),
        ("exec:cat,window=4096", ExecAddress(command="cat", window=4096)),
    ],
)
def test_commas_of_paths_and_commands_are_kept(rest: str, address: StreamAddress) -> None:
    assert parse_stream_address(rest) == address
