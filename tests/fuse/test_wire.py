"""The bytes of requests and replies, against tables made from linux/fuse.h."""

from __future__ import annotations

import stat
import struct
from typing import Any

import pyfuse3
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from vconfs.fuse import _kernel_protocol as wire
from vconfs.fuse._operations import ReaddirToken

from .kernel import INIT, Kernel, Quiet, connect, connected, init_body

#: sizeof() of each struct in linux/fuse.h; of those that have grown, what we read of them.
SIZES = {
    wire.IN_HEADER: ("fuse_in_header", 40),
    wire.OUT_HEADER: ("fuse_out_header", 16),
    wire.READ_IN: ("fuse_read_in", 40),
    wire.TRANSFER: ("fuse_in_header and fuse_write_in", 80),
    wire.WRITE_OUT: ("fuse_write_out", 8),
    wire.WRITE_REPLY: ("fuse_out_header and fuse_write_out", 24),
    wire.INIT_IN: ("fuse_init_in, until flags2", 16),
    wire.INIT_OUT: ("fuse_init_out", 64),
    wire.OPEN_IN: ("fuse_open_in", 8),
    wire.OPEN_OUT: ("fuse_open_out", 16),
    wire.CREATE_IN: ("fuse_create_in", 16),
    wire.MKNOD_IN: ("fuse_mknod_in", 16),
    wire.MKDIR_IN: ("fuse_mkdir_in", 8),
    wire.RENAME_IN: ("fuse_rename_in", 8),
    wire.RENAME2_IN: ("fuse_rename2_in", 16),
    wire.LINK_IN: ("fuse_link_in", 8),
    wire.RELEASE_IN: ("fuse_release_in", 24),
    wire.FSYNC_IN: ("fuse_fsync_in", 16),
    wire.FLUSH_IN: ("fuse_flush_in", 24),
    wire.GETXATTR_IN: ("fuse_getxattr_in", 8),
    wire.GETXATTR_OUT: ("fuse_getxattr_out", 8),
    wire.SETXATTR_IN: ("fuse_setxattr_in, FUSE_COMPAT_SETXATTR_IN_SIZE", 8),
    wire.ACCESS_IN: ("fuse_access_in", 8),
    wire.INTERRUPT_IN: ("fuse_interrupt_in", 8),
    wire.FORGET_IN: ("fuse_forget_in", 8),
    wire.BATCH_FORGET_IN: ("fuse_batch_forget_in", 8),
    wire.FORGET_ONE: ("fuse_forget_one", 16),
    wire.POLL_IN: ("fuse_poll_in", 24),
    wire.POLL_OUT: ("fuse_poll_out", 8),
    wire.POLL_WAKEUP: ("fuse_notify_poll_wakeup_out", 8),
    wire.INVAL_INODE_OUT: ("fuse_notify_inval_inode_out", 24),
    wire.INVAL_ENTRY_OUT: ("fuse_notify_inval_entry_out", 16),
    wire.DELETE_OUT: ("fuse_notify_delete_out", 24),
    wire.STORE_OUT: ("fuse_notify_store_out", 24),
    wire.SETATTR_IN: ("fuse_setattr_in", 88),
    wire.ATTR: ("fuse_attr", 88),
    wire.ATTR_OUT: ("fuse_attr_out, until attr", 16),
    wire.ENTRY_OUT: ("fuse_entry_out, until attr", 40),
    wire.STATFS_OUT: ("fuse_kstatfs", 80),
    wire.DIRENT: ("fuse_dirent, until name", 24),
}


@pytest.mark.parametrize(
    ("layout", "size"), [(layout, size) for layout, (_, size) in SIZES.items()]
)
def test_a_layout_is_as_long_as_the_kernels(layout: struct.Struct, size: int) -> None:
    assert layout.size == size


def test_every_layout_is_in_the_table() -> None:
    layouts = {value for value in vars(wire).values() if isinstance(value, struct.Struct)}
    assert layouts == set(SIZES)


def test_a_transfer_has_the_size_of_header_and_body() -> None:
    head = wire.IN_HEADER.pack(4176, wire.Opcode.WRITE, 77, 5, 1, 2, 3, 0, 0)
    body = wire.READ_IN.pack(11, 22, 33, 44, 55, 66, 0)
    assert wire.TRANSFER.unpack(head + body) == (wire.Opcode.WRITE, 77, 11, 22, 33, 66)


# --- replies ------------------------------------------------------------------------------

TIMES = st.integers(-(2**62), 2**62)
SHORT = st.integers(0, 2**32 - 1)
LONG = st.integers(0, 2**63 - 1)


@given(LONG, LONG, LONG, TIMES, TIMES, SHORT, SHORT, SHORT)
def test_attributes_are_packed_as_the_kernel_reads_them(
    inode: int, size: int, blocks: int, atime: int, mtime: int, mode: int, uid: int, nlink: int
) -> None:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_size, entry.st_blocks = pyfuse3.InodeT(inode), size, blocks
    entry.st_atime_ns, entry.st_mtime_ns = atime, mtime
    entry.st_mode, entry.st_uid, entry.st_nlink = pyfuse3.ModeT(mode), uid, nlink
    packed = wire.attributes(entry)
    assert len(packed) == 88
    fields = struct.unpack("<QQQqqqIIIIIIIIII", packed)
    assert fields[:3] == (inode, size, blocks)
    assert fields[3] * 10**9 + fields[6] == atime
    assert fields[4] * 10**9 + fields[7] == mtime
    assert all(0 <= nanoseconds < 10**9 for nanoseconds in fields[6:9])
    assert (fields[9], fields[10], fields[11]) == (mode, nlink, uid)


@pytest.mark.parametrize(
    ("seconds", "packed"),
    [
        (0, (0, 0)),
        (1.5, (1, 500_000_000)),
        (300, (300, 0)),
        (-1, (0, 0)),
        (1e30, (1 << 62, 0)),
        (float("inf"), (1 << 62, 0)),
    ],
)
def test_a_validity_is_seconds_and_nanoseconds(seconds: float, packed: tuple[int, int]) -> None:
    entry = pyfuse3.EntryAttributes()
    entry.attr_timeout, entry.entry_timeout = seconds, 0
    assert struct.unpack_from("<QI", wire.attr_reply(entry)) == packed
    _, _, entry_s, attr_s, entry_ns, attr_ns = struct.unpack_from(
        "<QQQQII", wire.entry_reply(entry)
    )
    assert ((attr_s, attr_ns), (entry_s, entry_ns)) == (packed, (0, 0))


@pytest.mark.parametrize(
    ("info", "flags"),
    [
        ({"direct_io": False, "keep_cache": False}, 0),
        ({"direct_io": True, "keep_cache": False}, 1),
        ({"keep_cache": True}, 2),
        ({"nonseekable": True, "keep_cache": False}, 4 | 16),
    ],
)
def test_open_flags(info: dict[str, Any], flags: int) -> None:
    reply = wire.open_reply(pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(9), **info))
    assert struct.unpack("<QII", reply) == (9, flags, 0)


def test_statfs() -> None:
    data = pyfuse3.StatvfsData()
    data.f_blocks, data.f_bfree, data.f_bavail, data.f_files, data.f_ffree = 1, 2, 3, 4, 5
    data.f_bsize, data.f_namemax, data.f_frsize = 6, 7, 8
    assert struct.unpack_from("<QQQQQIII", wire.statfs_reply(data)) == (1, 2, 3, 4, 5, 6, 7, 8)


KINDS = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK]


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=255), st.sampled_from(KINDS)), max_size=30),
    st.integers(0, 4096),
    st.booleans(),
)
def test_a_listing_has_what_was_added_and_is_never_too_long(
    entries: list[tuple[bytes, int]], size: int, plus: bool
) -> None:
    token = ReaddirToken(size, plus)
    added = []
    for number, (name, kind) in enumerate(entries, 1):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = pyfuse3.InodeT(1000 + number), pyfuse3.ModeT(kind | 0o644)
        if not token.add(name, entry, number):
            break
        added.append((1000 + number, number, stat.S_IFMT(kind) >> 12, name))
    assert len(token.reply) <= size
    assert list(unpacked(bytes(token.reply), plus)) == added


def unpacked(listing: bytes, plus: bool) -> Any:
    at = 0
    while at < len(listing):
        at += 128 if plus else 0
        inode, next_id, length, kind = struct.unpack_from("<QQII", listing, at)
        yield inode, next_id, kind, listing[at + 24 : at + 24 + length]
        at += 24 + length
        at += -at % 8
    assert at == len(listing)


# --- requests -----------------------------------------------------------------------------


class Deaf(Quiet):
    """Whatever is asked, it fails in the same way."""

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        raise pyfuse3.FUSEError(1)

    def read_nowait(self, fh: int, size: int, flags: int) -> Any:
        raise pyfuse3.FUSEError(1)


@settings(max_examples=examples(100))
@given(
    st.lists(
        st.tuples(st.integers(0, 60) | SHORT, st.binary(max_size=120)), min_size=1, max_size=10
    )
)
@pytest.mark.expect_log("was refused")
def test_no_request_ends_the_session_or_goes_unanswered(requests: list[tuple[int, bytes]]) -> None:
    async def main() -> None:
        async with connected(Deaf()) as kernel:
            for opcode, body in requests:
                if opcode == INIT:  # the kernel says it once, and that is behind us
                    continue
                await answered(kernel, opcode, body)

    trio.run(main)


async def answered(kernel: Kernel, opcode: int, body: bytes) -> None:
    if opcode in (2, 36, 42):
        await kernel.send(opcode, body)
    else:
        await kernel.ask(opcode, body)


@given(st.binary(max_size=100), st.integers(0, 100))
@pytest.mark.expect_log("the kernel sent a request", "was refused")
def test_no_packet_ends_the_session(packet: bytes, cut: int) -> None:
    """Bare bytes, and an INIT that is cut anywhere."""

    async def main() -> None:
        async with connect(Deaf()) as kernel:
            if packet and packet[4:8] != struct.pack("<I", INIT):
                await kernel.send_bytes(packet)
            await kernel.send(INIT, init_body()[:cut])
            await kernel.send(3, bytes(16), unique=4242)
            while (await kernel.receive()).unique != 4242:
                pass

    trio.run(main)
