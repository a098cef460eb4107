"""Notifications through descriptors that the peer has, too, and can do with as it likes."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.vhost_user.notices import check_notifier, notify

#: The most that the counter of an eventfd can be.
FULL = (1 << 64) - 2


@contextmanager
def full_eventfd() -> Iterator[int]:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        os.eventfd_write(event, FULL)
        yield event
    finally:
        os.close(event)


@contextmanager
def full_socket() -> Iterator[int]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16))
        yield ours.fileno()


@pytest.mark.parametrize("full", [full_eventfd, full_socket])
def test_a_peer_that_lets_its_descriptor_block_does_not_block_us(
    full: Callable[[], AbstractContextManager[int]],
) -> None:
    with full() as fd:
        check_notifier(fd)
        os.set_blocking(fd, True)
        notify(fd)


def test_a_file_is_nothing_to_notify_by() -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(RemoteProtocolError, match="no eventfd, pipe or socket"):
            check_notifier(file.fileno())
