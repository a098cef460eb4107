"""Where a stream leads: what stands behind `stream:` in the urls of both ends."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Final

from attrs import frozen

from vconfs.protocol.stream import WINDOW_MAX, WINDOW_MIN
from vconfs.streams.wire import Wire

#: What a peer may have under way where nobody says otherwise: enough for a far network, and a
#: bound for what may still come after it was told to stop.
DEFAULT_WINDOW: Final = 4 << 20

#: Waits for the next guest, and reaches it; None: no other can come.
NextGuest = Callable[[], AbstractAsyncContextManager[Wire | None]]


@frozen(kw_only=True)
class StreamAddress(ABC):
    """Where a stream leads, seen from both ends: the guest connects, the host listens."""

    #: Bytes that the peer may have under way to us.
    window: int = DEFAULT_WINDOW
    #: Bytes that may come before the peer's hello.
    noise_max: ClassVar[int] = 0
    #: True if several peers can come at once.
    has_many_peers: ClassVar[bool] = False
    #: The most seconds between two tries to meet a guest.
    pause_max: ClassVar[float] = 2.0

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Wire]:
        """Reach the host end; VconfsError."""

    @abstractmethod
    def listen(self) -> AbstractAsyncContextManager[NextGuest]:
        """Wait for guests; VconfsError."""


def split_options(rest: str, *names: str) -> tuple[str, dict[str, str]]:
    """Take options like ",window=N" off the end; what has commas of its own may stand before."""
    options: dict[str, str] = {}
    while found := re.fullmatch(f"(.*),({'|'.join(names)})=([^,]*)", rest, re.DOTALL):
        rest, name, value = found.groups()
        if name in options:
            raise ValueError(f"{name} is given twice")
        options[name] = value
    return rest, options


def window_option(options: dict[str, str], default: int = DEFAULT_WINDOW) -> int:
    """Read the size of a window; ValueError."""
    value = options.get("window", str(default))
    if not re.fullmatch("[0-9]{1,10}", value) or not WINDOW_MIN <= int(value) <= WINDOW_MAX:
        raise ValueError(f"a window is {WINDOW_MIN} to {WINDOW_MAX} bytes, not {value!r}")
    return int(value)
