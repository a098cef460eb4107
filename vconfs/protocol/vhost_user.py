"""The vhost-user protocol as QEMU documents it (docs/interop/vhost-user.rst), both roles.

Theory of operation
-------------------
A front-end has a guest's memory and its virtqueues, a back-end is the device. Over one unix
socket the front-end sends requests, with file descriptors; the back-end answers some of them. A
second socket (SET_BACKEND_REQ_FD) carries the back-end's own requests. All numbers are native.

    message   u32 request, u32 flags, u32 size, payload    flags: version 1, REPLY, NEED_REPLY

`Parser` cuts messages out of either socket. `Backend` takes the front-end's requests and tells
its owner what they change; `Frontend` makes them and reads what comes back. A request without a
reply of its own is acknowledged (u64, 0: done) if NEED_REPLY is set and REPLY_ACK negotiated.

A ring is stopped at first. SET_VRING_KICK, or VRING_KICK in-band, starts it, GET_VRING_BASE stops
it. It does nothing visible before SET_VRING_ENABLE, unless VHOST_USER_F_PROTOCOL_FEATURES was not
negotiated: then it is enabled from the start. A ring that is running cannot be set up; setting up
one that is disabled stops it (Linux's user-mode driver, loaded again, never asks where it
stopped). When the memory changes, started rings go on in the new one, or stop if they are not in
it.

There are two kinds of address. The front-end names a ring's parts by *user* addresses, its own;
the guest's descriptors have *guest* addresses. `AddressTable` has both; `RingSetup.layout` and
`RingMoved.layout` are already guest addresses, so that one `virtqueue.GuestMemory` over the mapped
regions serves for both. That all of a part lies in one region was checked.

What a back-end does with bad messages
--------------------------------------
*Failed* means RemoteProtocolError: the connection ends, which is also how a front-end that asks
for no answer learns of it (as with libvhost-user, which gives up in all of these cases).
*Refused* means that nothing changes and a `Refused` event says why.

    what is wrong                                     NEED_REPLY     without
    header: version, size > 4096, more than 8 fds     failed         failed
    a descriptor came with a payload                  failed         failed
    REPLY flag in a request                           failed         failed
    wrong size of payload, wrong number of fds        failed         failed
    in-band notifications without BACKEND_REQ or
      REPLY_ACK                                       failed         failed
    unknown request, or its protocol feature was
      not negotiated                                  refused, 1     refused, silently
    SET_CONFIG: out of range, read-only, bad flags    refused, 1     refused, silently
    GET_CONFIG beyond 256 bytes                       refused, by a reply without payload
    GET_VRING_BASE of a ring that there is not        failed         failed
    any other ring that there is not                  refused, 1     failed
    features that were not offered                    refused, 1     failed
    regions: empty, wrapping, overlapping, too many,
      not there                                       refused, 1     failed
    ring size or base, a ring's part not aligned or
      outside of every region, flags (no logging)     refused, 1     failed
    setting up a ring that is running                 refused, 1     failed
    starting a ring without size or address           refused, 1     failed
    kick before enable                                fine: started, but disabled

NEED_REPLY counts only when REPLY_ACK was negotiated, be it by this very message. GET_CONFIG past
the end of the config space, but within 256 bytes, gives zeros.

Whose descriptors are they
--------------------------
A descriptor is an int here, and in every moment somebody's: the `Parser`'s from `feed` until
`next_message` gives it out in a `Message`, or `release` does; then the `Backend`'s (see there),
or, for replies and on the second socket, where none is legal, the caller's to close.
"""

from vconfs.protocol._vhost_user_backend import Backend
from vconfs.protocol._vhost_user_channel import Channel
from vconfs.protocol._vhost_user_events import (
    BackendEvent,
    ChannelSet,
    ConfigWritten,
    DeviceReset,
    FeaturesSet,
    Handled,
    Kicked,
    MemoryRegionAdded,
    MemoryRegionRemoved,
    MemoryTableSet,
    Notifier,
    NotifierChanged,
    RingEnabled,
    RingMoved,
    RingSetup,
    RingStarted,
    RingStopped,
    StatusSet,
)
from vconfs.protocol._vhost_user_frontend import (
    Asked,
    ConfigStale,
    Frontend,
    FrontendEvent,
    Reply,
    VringBroken,
    VringCalled,
)
from vconfs.protocol._vhost_user_memory import AddressTable, Region
from vconfs.protocol._vhost_user_messages import (
    CONFIG_MAX,
    F_PROTOCOL_FEATURES,
    FDS_MAX,
    PAYLOAD_MAX,
    PF_BACKEND_REQ,
    PF_CONFIG,
    PF_CONFIGURE_MEM_SLOTS,
    PF_INBAND_NOTIFICATIONS,
    PF_MQ,
    PF_REPLY_ACK,
    PF_RESET_DEVICE,
    PF_STATUS,
    QUEUES_MAX,
    TABLE_REGIONS_MAX,
    BackendRequest,
    Message,
    Outgoing,
    Parser,
    Refused,
    Request,
)

__all__ = [
    "CONFIG_MAX",
    "FDS_MAX",
    "F_PROTOCOL_FEATURES",
    "PAYLOAD_MAX",
    "PF_BACKEND_REQ",
    "PF_CONFIG",
    "PF_CONFIGURE_MEM_SLOTS",
    "PF_INBAND_NOTIFICATIONS",
    "PF_MQ",
    "PF_REPLY_ACK",
    "PF_RESET_DEVICE",
    "PF_STATUS",
    "QUEUES_MAX",
    "TABLE_REGIONS_MAX",
    "AddressTable",
    "Asked",
    "Backend",
    "BackendEvent",
    "BackendRequest",
    "Channel",
    "ChannelSet",
    "ConfigStale",
    "ConfigWritten",
    "DeviceReset",
    "FeaturesSet",
    "Frontend",
    "FrontendEvent",
    "Handled",
    "Kicked",
    "MemoryRegionAdded",
    "MemoryRegionRemoved",
    "MemoryTableSet",
    "Message",
    "Notifier",
    "NotifierChanged",
    "Outgoing",
    "Parser",
    "Refused",
    "Region",
    "Reply",
    "Request",
    "RingEnabled",
    "RingMoved",
    "RingSetup",
    "RingStarted",
    "RingStopped",
    "StatusSet",
    "VringBroken",
    "VringCalled",
]
