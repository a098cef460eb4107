"""Addresses of streams: what follows `stream:` in the urls of both ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Final

from attrs import frozen

from vconfs.protocol.stream import WINDOW_MAX, WINDOW_MIN
from vconfs.streams.wire import Wire
from vconfs.syntax.sizes import parse_size

#: The default limit of bytes that a peer may have under way: enough for a distant network, and a
#: bound for what may still come after the peer was told to stop.
DEFAULT_WINDOW: Final = 4 << 20
#: The option of all streams, as it is written.
WINDOW_OPTION: Final = "window=SIZE"

#: Waits for the next guest and connects to it. Its value is None if no further guest can come.
NextGuest = Callable[[], AbstractAsyncContextManager[Wire | None]]


@frozen(kw_only=True)
class StreamAddress(ABC):
    """The address of a stream, for both ends: the guest connects to it, the host listens on it."""

    #: The most bytes that the peer may have under way to us.
    window: int = DEFAULT_WINDOW
    #: The most other bytes that may come before the peer's hello.
    noise_max: ClassVar[int] = 0
    #: True if several peers can connect at once.
    has_many_peers: ClassVar[bool] = False
    #: The longest pause between two tries to reach a guest, in seconds.
    pause_max: ClassVar[float] = 2.0
    #: True if it starts a program, which may need to gain privileges.
    starts_program: ClassVar[bool] = False

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Wire]:
        """Connect to the host end. Raise VconfsError if that fails."""

    @abstractmethod
    def listen(self) -> AbstractAsyncContextManager[NextGuest]:
        """Listen for guests. Raise VconfsError if that fails."""


def window_option(options: dict[str, str], default: int = DEFAULT_WINDOW) -> int:
    """Return the option `window`, in bytes. Raise ValueError if it is out of range."""
    value = options.get("window", str(default))
    return parse_size("window", value, WINDOW_MIN, WINDOW_MAX)
