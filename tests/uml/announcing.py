"""`vconfs host`, but a port that is given the name it has is announced to the guest once more.

Hosts may do so, and ours does not: `python -m tests.uml.announcing host …`
"""

from __future__ import annotations

from unittest.mock import patch

from vconfs.__main__ import main
from vconfs.host.host import Host


class AnnouncingHost(Host):
    def rename(self, port_id: int, name: bytes) -> None:
        if self.guest is not None and self.find(port_id).name == name:
            self.guest.port_added(port_id, False)
        super().rename(port_id, name)


if __name__ == "__main__":
    with patch("vconfs.host.host.Host", AnnouncingHost):
        main()
