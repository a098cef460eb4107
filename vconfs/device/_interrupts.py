"""Interrupts that come as eventfds."""

from __future__ import annotations

import os
import select
from contextlib import ExitStack

import trio


class Eventfds:
    """A set of eventfds, each for one vector."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._epoll = select.epoll()
        self._vectors: dict[int, int] = {}  # eventfd -> its vector
        stack.callback(self._epoll.close)

    def __bool__(self) -> bool:
        return bool(self._vectors)

    def add(self, event: int, vector: int) -> None:
        """Watch an eventfd, which is closed at the end.

        Edges are waited for, so that it need not be read: others can have it too, and take from it
        what was there.
        """
        self._stack.callback(os.close, event)
        self._epoll.register(event, select.EPOLLIN | select.EPOLLET)
        self._vectors[event] = vector

    async def wait(self) -> set[int]:
        """Wait until some were raised, and give their vectors."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        return {self._vectors[event] for event, _ in self._epoll.poll(0)}
