"""How the ports of a mount behave."""

from __future__ import annotations

from typing import Final

from attrs import field, frozen

from vconfs.syntax.patience import DEFAULT_PATIENCE, parse_patience

#: The limit of unread bytes per port if neither the options nor the host set one.
DEFAULT_LIMIT: Final = 1 << 20
#: The highest limit that a host can set if the options set none.
DEFAULT_CEILING: Final = 16 << 20


@frozen
class PortOptions:
    """How the ports of a mount behave; see "What a file does" in README.md."""

    exclusive: bool = False  # a second open is refused with EBUSY
    wait: bool = False  # without a host, a read waits for one instead of returning end of file
    cache: bool = False  # unread data survives the last close, whatever the host says
    #: Seconds that a write waits while the host throttles the port, or its device is away. It also
    #: accepts the option's text: "enospc" is 0, "block" is infinity, "500ms" is 0.5.
    throttle: float = field(default=DEFAULT_PATIENCE, converter=parse_patience)
    #: The limit of unread bytes, and the highest that the host can set; None: see `Port.limit`.
    limit: int | None = None
