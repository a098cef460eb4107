"""Attacks of hostile peers on the host end: each has its outcome, and the others go on.

While an attack is on, the control socket answers in time; it is served by the same event loop.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.waiting import block_until

from .hostile import (
    GUEST,
    LIMIT,
    DeafFuse,
    HostProgram,
    RawFrontEnd,
    deaf_file,
    flipping,
    hostile_host,
    lingering_socket,
    raw_front_end,
)

PORT = ("--port", "a=echo")
NEXT, WRITE = 1, 2
FULL = (1 << 64) - 2


# --- rings --------------------------------------------------------------------------------


def chain_all(front: RawFrontEnd, queue: int, num: int, length: int, *, indirect: bool) -> None:
    """Start a ring whose heads each lead through all that come behind, the first through all."""
    avail = 16 * num
    used = -(-(avail + 6 + 2 * num) // 4096) * 4096
    at = -(-(used + 6 + 8 * num) // 4096) * 4096
    table = at + 4096 if indirect else 0
    flags = 0 if queue % 2 else WRITE
    for i in range(num):
        last = i == num - 1
        more = (0, 0) if last else (NEXT, i + 1)
        part = (GUEST + at, length, flags | more[0], more[1])
        struct.pack_into("<QIHH", front.memory, table + 16 * i, *part)
        if indirect:
            head = (GUEST + table, 16 * num, 4, 0)
            struct.pack_into("<QIHH", front.memory, 16 * i, *head)
        struct.pack_into("<H", front.memory, avail + 4 + 2 * i, i)
    struct.pack_into("<HH", front.memory, avail, 0, num)
    front.start(queue, num, 0, avail, used)


def ask_name(front: RawFrontEnd) -> None:
    """Start the ring to the host, with one message that is to be answered on the other ring."""
    desc = 3 << 20
    message = struct.pack("<IIIHH", 0, 1, 4, 1, 0)
    struct.pack_into("<QIHH", front.memory, desc, GUEST + desc + 16384, len(message), 0, 0)
    front.memory[desc + 16384 : desc + 16384 + len(message)] = message
    struct.pack_into("<HHH", front.memory, desc + 4096, 0, 1, 0)
    front.start(1, 8, desc, desc + 4096, desc + 8192)


@pytest.mark.parametrize("indirect", [False, True], ids=["chained", "indirect"])
@pytest.mark.parametrize(("queue", "length"), [(1, 16), (0, 16), (0, 0)], ids=["out", "in", "none"])
@pytest.mark.parametrize("num", [1024, 32768])
def test_a_ring_full_of_long_chains(
    tmp_path: Path, num: int, queue: int, length: int, indirect: bool
) -> None:
    with hostile_host(tmp_path, "vhost-user", *PORT) as host:
        with raw_front_end(tmp_path, 4 << 20) as front:
            front.negotiate()
            front.share()
            chain_all(front, queue, num, length, indirect=indirect)
            if not queue:
                ask_name(front)
            host.answers(2.0)
            assert host.resident < 100
            lost = [line for line in host.said if "guest lost" in line]
            if num == 1024:
                assert lost == []
            elif indirect:
                wrong = f"an indirect table of {16 * num} bytes"
                assert lost == [f"vconfs: guest lost: queue {queue}: {wrong}"]
            else:
                wrong = "the chain of head 0 has more than 1024 parts"
                assert lost == [f"vconfs: guest lost: queue {queue}: {wrong}"]
        host.ends()


# --- notifications ------------------------------------------------------------------------


def test_a_call_that_is_full_and_blocks_in_the_wrong_moment(tmp_path: Path) -> None:
    with hostile_host(tmp_path, "vhost-user", *PORT) as host, raw_front_end(tmp_path) as front:
        front.negotiate()
        front.share()
        os.eventfd_write(front.calls[1], FULL)
        with flipping(front.calls[1]):
            struct.pack_into("<QIHH", front.memory, 0, GUEST + 16384, 16, 0, 0)
            front.memory[16384:16400] = struct.pack("<IIIHH", 0, 1, 4, 0, 1)
            front.start(1, 8, 0, 4096, 8192)
            for number in range(1, 1001):
                struct.pack_into("<HH", front.memory, 4096, 0, number)
                os.eventfd_write(front.kicks[1], 1)
                used = struct.pack("<H", number)
                block_until(lambda used=used: front.memory[8194:8196] == used)  # type: ignore[misc]
            host.answers(0.3)
        host.ends()


# --- descriptors --------------------------------------------------------------------------


def turned_away(host: HostProgram, reason: str) -> None:
    line = f"vconfs: front-end turned away: {reason}"
    block_until(lambda: host.said)
    assert host.said == [line]
    host.answers(0.5)
    with raw_front_end(host.folder) as front:  # the next one is served
        front.negotiate()
        front.share()
        assert front.ask(11, struct.pack("=II", 0, 0)) == bytes(8)


NOT_IN_MEMORY = (
    f"the region at guest {GUEST:#x} is not in a file in memory: share a memfd, or a file on tmpfs"
    " or hugetlbfs"
)


@pytest.mark.parametrize("deaf_to", [DeafFuse.GETATTR, DeafFuse.READ])
def test_memory_whose_file_system_does_not_answer(tmp_path: Path, deaf_to: int) -> None:
    with (
        hostile_host(tmp_path, "vhost-user", *PORT) as host,
        deaf_file(tmp_path / "deaf", deaf_to) as (fd, _),
        raw_front_end(tmp_path) as front,
    ):
        front.negotiate()
        front.share(fd)
        os.close(fd)
        assert front.ended()
        turned_away(host, NOT_IN_MEMORY)


def test_a_call_descriptor_whose_file_system_does_not_answer(tmp_path: Path) -> None:
    with (
        hostile_host(tmp_path, "vhost-user", *PORT) as host,
        deaf_file(tmp_path / "deaf", DeafFuse.GETATTR) as (fd, _),
        raw_front_end(tmp_path) as front,
    ):
        front.negotiate()
        front.share()
        front.calls, calls = [fd, fd], front.calls
        with suppress(BrokenPipeError):  # it may be turned away before it has said all
            front.start(1, 8, 0, 4096, 8192)
        front.calls = calls
        os.close(fd)
        assert front.ended()
        turned_away(host, "a notification descriptor is not an eventfd, pipe or unix socket")


def test_a_descriptor_whose_close_is_never_answered(tmp_path: Path) -> None:
    with (
        hostile_host(tmp_path, "vhost-user", *PORT) as host,
        deaf_file(tmp_path / "deaf", DeafFuse.FLUSH) as (fd, fuse),
        raw_front_end(tmp_path) as front,
    ):
        front.say(3, b"", [fd])
        assert front.ended()
        block_until(lambda: fuse.unanswered)
        turned_away(host, "SET_OWNER with 1 descriptors")


def test_peers_with_descriptors_wait_while_too_many_cannot_be_closed(tmp_path: Path) -> None:
    with (
        hostile_host(tmp_path, "vhost-user", *PORT) as host,
        deaf_file(tmp_path / "deaf", DeafFuse.FLUSH) as (fd, _),
    ):
        before = host.descriptors
        for _ in range(60):
            with raw_front_end(tmp_path) as front:
                front.sock.settimeout(1)
                try:
                    front.say(3, b"", [fd] * 8)
                    front.ended()
                except (TimeoutError, BlockingIOError):
                    break
        assert host.descriptors < before + 16 + 64 + 2 * 8
        host.answers(0.5)
        assert "vconfs: descriptors of peers cannot be closed, new ones have to wait" in host.said
        reason = "too many descriptors cannot be closed"
        assert f"vconfs: front-end turned away: {reason}" not in host.said


def test_a_descriptor_whose_close_takes_long(tmp_path: Path) -> None:
    with (
        hostile_host(tmp_path, "vhost-user", *PORT) as host,
        lingering_socket() as sock,
        raw_front_end(tmp_path) as front,
    ):
        front.say(3, b"", [sock.fileno()])
        sock.close()
        assert front.ended()
        turned_away(host, "SET_OWNER with 1 descriptors")
        host.ends()


@pytest.mark.parametrize("path", ["unix", "seqpacket", "s", "control"])
def test_descriptors_where_none_are_wanted(tmp_path: Path, path: str) -> None:
    ports = ("--port", f"a=unix:{tmp_path}/unix", "--port", f"b=seqpacket:{tmp_path}/seqpacket")
    with hostile_host(tmp_path, "stream:unix", *ports) as host, lingering_socket() as sock:
        kind = socket.SOCK_SEQPACKET if path == "seqpacket" else socket.SOCK_STREAM
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(tmp_path / path))
            fds = array.array("i", [sock.fileno()])
            with suppress(PermissionError):  # the kernel has SO_PASSRIGHTS
                client.sendmsg([b"{}\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                sock.close()
            host.answers(0.5)
        host.ends()


# --- the last descriptors -----------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
def test_a_front_end_comes_when_hardly_a_descriptor_is_left(tmp_path: Path, left: int) -> None:
    limit = 60
    with hostile_host(tmp_path, "vhost-user", *PORT, nofile=limit) as host:
        with ExitStack() as clients:
            while host.descriptors < limit - left:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(LIMIT)
                client.connect(str(tmp_path / "control"))
                client.recv(1)
            with raw_front_end(tmp_path) as front:
                with suppress(BrokenPipeError):
                    front.say(3)
                time.sleep(0.2)  # it may be served, or turned away by now, or have to wait
                clients.close()
                block_until(lambda: host.descriptors < limit // 2)
                host.answers(0.3)
        assert host.process.poll() is None
        for line in host.said:
            assert line in (
                "vconfs: clients have to wait: Too many open files; trying again",
                "vconfs: clients are let in again",
                "vconfs: front-end turned away: we cannot serve it: Too many open files",
            )
        with raw_front_end(tmp_path) as front:
            front.negotiate()
            assert len(front.ask(1)) == 8
        host.ends()
