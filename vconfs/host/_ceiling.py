"""How much guest data the ports of a guest, and of all guests, may keep for their chardevs.

A port reserves its host limit when it is added, so no flood can exceed what was allowed then.
"""

from __future__ import annotations

from attrs import define, field

from vconfs.errors import VconfsError


@define(eq=False)
class Ceiling:
    """The most bytes that some ports may keep; 0: any number. It may be below another one."""

    limit: int = 0
    #: Whose ceiling it is, for the error.
    whose: str = "the ports"
    above: Ceiling | None = None
    taken: int = field(init=False, default=0)

    def take(self, size: int) -> None:
        """Reserve `size` bytes. Raise VconfsError, and reserve nothing, if it is too much."""
        if self.limit and self.taken + size > self.limit:
            raise VconfsError(
                f"{self.whose} would keep up to {self.taken + size} bytes of data, of the"
                f" {self.limit} allowed: lower host-limit, or remove a port"
            )
        if self.above is not None:
            self.above.take(size)
        self.taken += size

    def give_back(self, size: int) -> None:
        """Note that `size` bytes are not reserved any more."""
        self.taken -= size
        if self.above is not None:
            self.above.give_back(size)

    def give_all_back(self) -> None:
        """Note that nothing is reserved any more."""
        self.give_back(self.taken)
