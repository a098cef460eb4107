"""The config space of a virtio function: a real one, and one wrong field at a time."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vconfs.protocol import virtio_pci
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.virtio_pci import Bar, Region, choose_features, parse_bar, parse_function

#: QEMU 7.2's virtio-serial-pci with disable-legacy=on.
REAL = bytes.fromhex(
    "f41a4310000010000100800700000000000000000000000000000000000000000c0000000000000000000000"
    "f41a001100000000980000000000000000010000090010010400000000000000001000000940100304000000"
    "0010000000100000095010040400000000200000001000000960140204000000003000000010000004000000"
    "09701405000000000000000000000000000000001184010001000000010800000000000000000000"
).ljust(256, b"\0")
BARS = {1: 4096, 4: 16384}

COMMON, ISR, DEVICE, NOTIFY, WINDOW, MSIX = 0x40, 0x50, 0x60, 0x70, 0x84, 0x98


def changed(*changes: tuple[int, str, int]) -> bytes:
    config = bytearray(REAL)
    for at, form, value in changes:
        struct.pack_into("<" + form, config, at, value)
    return bytes(config)


def test_the_capabilities_come_in_their_own_order() -> None:
    places = [at for at, _ in virtio_pci.walk_capabilities(REAL)]
    assert places == [MSIX, WINDOW, NOTIFY, DEVICE, ISR, COMMON]


def test_a_real_function() -> None:
    function = parse_function(REAL)
    assert function.device == virtio_pci.CONSOLE
    assert function.common == Region(4, 0, 4096)
    assert function.isr == Region(4, 0x1000, 4096)
    assert function.config == Region(4, 0x2000, 4096)
    assert function.notify == Region(4, 0x3000, 4096)
    assert function.notify_multiplier == 4
    assert function.msix is not None
    assert function.msix.vectors == 2
    assert function.msix.table == Region(1, 0, 32)
    function.check_bars(BARS)
    assert function.notify_offset(5, 5) == 0x3014


def test_a_transitional_device_is_fine() -> None:
    assert parse_function(changed((2, "H", 0x1003))).device == 0x1003


def test_msix_is_optional() -> None:
    function = parse_function(changed((0x34, "B", WINDOW)))
    assert function.msix is None
    function.check_bars({4: 16384})


def test_the_first_structure_of_a_kind_counts() -> None:
    config = changed((WINDOW + 3, "B", 1), (WINDOW + 4, "B", 4), (WINDOW + 12, "I", 64))
    assert parse_function(config).common.length == 64


@pytest.mark.parametrize(
    ("at", "value"), [(WINDOW + 3, 0), (WINDOW + 3, 77)], ids=["type 0", "type 77"]
)
def test_reserved_structures_are_ignored(at: int, value: int) -> None:
    assert parse_function(changed((at, "B", value))) == parse_function(REAL)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "H", 0xFFFF, "there is no PCI function"),
        (0, "H", 0x8086, "8086:1043 is not a virtio console"),
        (2, "H", 0x1041, "1af4:1041 is not a virtio console"),
        (6, "H", 0, "only the legacy interface"),
        (0x34, "B", 0, "only the legacy interface"),
        (0x34, "B", 0x3C, "pointer 0x3c is inside of the PCI header"),
        (COMMON + 1, "B", 0x98, "loop at 0x98"),
        (COMMON + 1, "B", 0x40, "loop at 0x40"),
        (COMMON + 2, "B", 0, "cap_len 0 of the capability at 0x40"),
        (COMMON + 2, "B", 15, "common: cap_len 15 is less than 16"),
        (COMMON + 2, "B", 0xC1, "cap_len 193 of the capability at 0x40"),
        (NOTIFY + 2, "B", 16, "notify: cap_len 16 is less than 20"),
        (COMMON + 3, "B", 77, "no common structure"),
        (NOTIFY + 3, "B", 77, "no notify structure"),
        (ISR + 3, "B", 77, "no isr structure"),
        (DEVICE + 3, "B", 77, "no device structure"),
        (COMMON + 4, "B", 6, "no common structure"),
        (COMMON + 8, "I", 2, "common: offset 0x2 is not aligned"),
        (NOTIFY + 8, "I", 1, "notify: offset 0x1 is not aligned"),
        (DEVICE + 8, "I", 3, "device: offset 0x3 is not aligned"),
        (COMMON + 12, "I", 55, "common: length 55 is less than 56"),
        (NOTIFY + 12, "I", 1, "notify: length 1 is less than 2"),
        (ISR + 12, "I", 0, "isr: length 0 is less than 1"),
        (DEVICE + 12, "I", 0, "device: length 0 is less than 1"),
        (NOTIFY + 16, "I", 1, "notify_off_multiplier 1 "),
        (NOTIFY + 16, "I", 6, "notify_off_multiplier 6 "),
        (MSIX + 4, "I", 6, "MSI-X table: BAR 6"),
    ],
)
def test_a_wrong_field_is_named(at: int, form: str, value: int, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        parse_function(changed((at, form, value)))


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (COMMON + 4, "B", 3, "common: BAR 3 has no memory"),
        (COMMON + 8, "I", 0x3F00, "common: 4096 bytes at 0x3f00 are outside of BAR 4"),
        (ISR + 12, "I", 0xFFFFFFFF, "isr: 4294967295 bytes"),
        (DEVICE + 8, "I", 0xFFFFFFFC, "device: 4096 bytes at 0xfffffffc"),
        (MSIX + 2, "H", 0x07FF, "MSI-X table: 32768 bytes"),
        (MSIX + 4, "I", 2, "MSI-X table: BAR 2 has no memory"),
    ],
)
def test_a_structure_outside_of_its_bar(at: int, form: str, value: int, message: str) -> None:
    function = parse_function(changed((at, form, value)))
    with pytest.raises(RemoteProtocolError, match=message):
        function.check_bars(BARS)


def test_a_kick_outside_of_the_notify_structure() -> None:
    function = parse_function(REAL)
    assert function.notify_offset(9, 1023) == 0x3000 + 4092
    with pytest.raises(RemoteProtocolError, match="queue_notify_off 1024 of queue 9"):
        function.notify_offset(9, 1024)


def test_a_cut_off_msix_capability() -> None:
    config = changed((COMMON + 1, "B", 0xF8), (0xF8, "B", 0x11), (MSIX, "B", 0))
    with pytest.raises(RemoteProtocolError, match="MSI-X capability at 0xf8 is cut off"):
        parse_function(config)


@pytest.mark.parametrize(
    ("index", "low", "high", "bar"),
    [
        (0, 0, 0, Bar(memory=True, wide=False, size=0)),
        (0, 0xFFFFFFE1, 0, Bar(memory=False, wide=False, size=32)),
        (1, 0xFFFFF000, 0, Bar(memory=True, wide=False, size=4096)),
        (4, 0xFFFFC00C, 0xFFFFFFFF, Bar(memory=True, wide=True, size=16384)),
        (2, 0x0000000C, 0xFFFFFFFE, Bar(memory=True, wide=True, size=1 << 33)),
        (5, 0xFFFFF000, 0, Bar(memory=True, wide=False, size=4096)),
    ],
)
def test_bars(index: int, low: int, high: int, bar: Bar) -> None:
    assert parse_bar(index, low, high) == bar


@pytest.mark.parametrize(
    ("index", "low", "high", "message"),
    [
        (5, 0xFFFFC00C, 0xFFFFFFFF, "BAR 5 has 64 bits"),
        (1, 0xFFFF1000, 0, "BAR 1: size mask"),
        (0, 0x00000004, 0, "BAR 0: size mask"),
    ],
)
def test_bad_bars(index: int, low: int, high: int, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        parse_bar(index, low, high)


def test_features() -> None:
    assert choose_features(0x10130000006, 0x2) == 0x100000002
    with pytest.raises(RemoteProtocolError, match="VERSION_1"):
        choose_features(0x30000006, 0x2)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=40))
def test_changed_bytes_give_a_function_or_an_error(changes: list[tuple[int, int]]) -> None:
    check_any(changed(*((at, "B", value) for at, value in changes)))


@given(st.binary(min_size=252, max_size=252))
def test_random_bytes_give_a_function_or_an_error(rest: bytes) -> None:
    config = bytearray(REAL[:4] + rest)
    config[6] |= 16
    check_any(bytes(config))


def check_any(config: bytes) -> None:
    try:
        function = parse_function(config)
        function.check_bars(BARS)
    except RemoteProtocolError as error:
        assert str(error)
        return
    for region in (function.common, function.notify, function.isr, function.config):
        assert region.offset + region.length <= BARS[region.bar]


@given(st.integers(0, 5), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_bar_has_a_size_or_is_an_error(index: int, low: int, high: int) -> None:
    try:
        bar = parse_bar(index, low, high)
    except RemoteProtocolError:
        return
    assert 0 <= bar.size <= 1 << 63
