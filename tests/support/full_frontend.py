"""A front-end of vhost-user with the requests that QEMU sends and our driver does not."""

from __future__ import annotations

from vconfs.protocol import _vhost_user_messages as wire
from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.vhost_user import Frontend, Outgoing, Region, Request


class FullFrontend(Frontend):
    def rem_mem_reg(self, region: Region) -> Outgoing:
        return self._ask(Request.REM_MEM_REG, wire.MEM_REG.pack(0, region.pack()))

    def vring_kick(self, index: int) -> Outgoing:
        return self._ask_state(Request.VRING_KICK, index, 0)

    def set_config(self, offset: int, data: bytes) -> Outgoing:
        if not 0 <= offset <= offset + len(data) <= wire.CONFIG_MAX:
            raise LocalProtocolError(f"config bytes {offset} to {offset + len(data)}")
        head = wire.CONFIG.pack(offset, len(data), wire.CONFIG_WRITABLE)
        return self._ask(Request.SET_CONFIG, head + data)

    def reset_device(self) -> Outgoing:
        return self._ask(Request.RESET_DEVICE)
