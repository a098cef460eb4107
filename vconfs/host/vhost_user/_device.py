"""The device that vhost-user front-ends see of a host end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.host._attached_guest import AttachedGuest
from vconfs.host.host import Host
from vconfs.host.vhost_user.address import VhostUserAddress
from vconfs.link.link import Link
from vconfs.protocol import v8, vhost_user, virtio1
from vconfs.protocol.dialect import DIALECTS
from vconfs.protocol.dialect import Host as HostDialect
from vconfs.protocol.events import Data
from vconfs.protocol.virtio_pci import F_VERSION_1
from vconfs.protocol.virtqueue import F_EVENT_IDX, F_INDIRECT_DESC

_VIRTIO1: Final = "virtio1"
_RING_FEATURES: Final = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
#: STATUS is not offered: with it QEMU resets a device even when its guest is only paused.
_PROTOCOL_FEATURES: Final = (
    vhost_user.PF_MQ
    | vhost_user.PF_REPLY_ACK
    | vhost_user.PF_BACKEND_REQ
    | vhost_user.PF_CONFIG
    | vhost_user.PF_RESET_DEVICE
    | vhost_user.PF_CONFIGURE_MEM_SLOTS
)


@frozen
class VhostUserDevice:
    """A console device with the ports of `host`, in one of the dialects."""

    host: Host
    dialect: str
    offer: VhostUserAddress
    #: Where front-ends connect, for people.
    url: str = "vhost-user"

    def check_ports(self) -> None:
        """Raise VconfsError if the id of a port is too large for the dialect."""
        last, max_ports = self.host.port_count - 1, self.offer.max_ports
        if self.dialect == _VIRTIO1 and last >= max_ports:
            raise VconfsError(f"port id {last} is too large for {max_ports} ports: see max-ports")

    @property
    def features(self) -> int:
        """The feature bits that are offered."""
        emergency = virtio1.F_EMERG_WRITE if self.dialect == _VIRTIO1 else 0
        return DIALECTS[self.dialect].features | _RING_FEATURES | emergency

    def end(self, features: int) -> HostDialect:
        """Return our end of the dialect, with these features negotiated."""
        if self.dialect == _VIRTIO1:
            return virtio1.HostEnd(
                features,
                max_ports=self.offer.max_ports,
                resize_rows_first=self.offer.resize_rows_first,
            )
        return v8.HostEnd(features)

    @property
    def config(self) -> bytes:
        """The config space as it is now."""
        return self.end(self.features).config(self.host.port_count, *self.host.size)

    def protocol(self, read_config: Callable[[], bytes]) -> vhost_user.Backend:
        """Return our side of the protocol with one front-end; `read_config` answers GET_CONFIG."""
        inband = vhost_user.PF_INBAND_NOTIFICATIONS if self.offer.inband else 0
        return vhost_user.Backend(
            features=self.features,
            protocol_features=_PROTOCOL_FEATURES | inband,
            queues=self.end(self.features).queues,
            read_config=read_config,
            writable=virtio1.EMERGENCY_WRITE if self.dialect == _VIRTIO1 else range(0),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """Take what a guest wrote into the config space: an emergency byte for port 0."""
        end = self.end(self.features)
        if not isinstance(end, virtio1.HostEnd):
            return
        event = end.receive_config_write(offset, data)
        if isinstance(event, Data) and event.id in self.host.ports:
            self.host.ports[event.id].feed(event.data, None)

    def attach(
        self, link: Link, features: int, announce_config: Callable[[], None]
    ) -> AttachedGuest:
        """Attach a guest to the ports."""
        return self.host.attach(link, self.end(features), announce_config, self.url)
