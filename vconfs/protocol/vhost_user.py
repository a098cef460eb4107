"""The vhost-user protocol as QEMU documents it (docs/interop/vhost-user.rst), both roles.

Theory of operation
-------------------
A front-end has a guest's memory and its virtqueues, and a back-end is the device. Over one unix
socket the front-end sends requests, with file descriptors; the back-end answers some of them. A
second socket (SET_BACKEND_REQ_FD) carries the back-end's own requests. All numbers are in the
machine's byte order.

    message   u32 request, u32 flags, u32 size, payload    flags: version 1, REPLY, NEED_REPLY

`Parser` parses the messages of either socket. `Backend` handles the front-end's requests and
returns their effects to its owner; `Frontend` makes requests and handles the replies. A request
without a reply of its own is acknowledged (u64, 0 is success) if NEED_REPLY is set and REPLY_ACK
negotiated.

A ring is stopped at first. SET_VRING_KICK, or VRING_KICK in-band, starts it, and GET_VRING_BASE
stops it. It does nothing visible before SET_VRING_ENABLE, unless VHOST_USER_F_PROTOCOL_FEATURES was
not negotiated: then it is enabled from the start. A running ring cannot be set up. Setting up a
ring that is disabled stops it (Linux's user-mode driver, when loaded again, never asks where it
stopped). When the memory changes, started rings continue in the new memory, or stop if they are
not in it.

There are two kinds of addresses. The front-end refers to a ring's parts by *user* addresses, those
of its own memory; the guest's descriptors have *guest* addresses. `AddressTable` has both.
`RingSetup.layout` and `RingMoved.layout` already are guest addresses, so that one
`virtqueue.GuestMemory` over the mapped regions is enough. Each part was checked to be inside one
region.

What a back-end does with bad messages
--------------------------------------
*Failed* means RemoteProtocolError: the connection ends, which also tells a front-end that does not
ask for an answer (libvhost-user gives up in all of these cases as well). *Refused* means that
nothing changes and a `Refused` event has the reason.

    error                                             NEED_REPLY     without
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
    GET_VRING_BASE of a ring that does not exist      failed         failed
    any other ring that does not exist                refused, 1     failed
    features that were not offered                    refused, 1     failed
    regions: empty, wrapping, overlapping, too many,
      unknown                                         refused, 1     failed
    ring size or base, a ring's part not aligned or
      outside of every region, flags (no logging)     refused, 1     failed
    setting up a ring that is running                 refused, 1     failed
    starting a ring without size or address           refused, 1     failed
    kick before enable                                valid: started, but disabled

NEED_REPLY only counts if REPLY_ACK was negotiated, possibly by the same message. GET_CONFIG past
the end of the config space, but within 256 bytes, returns zeros.

Ownership of descriptors
------------------------
A descriptor is an int here, and has exactly one owner at any time. It belongs to the `Parser` from
`feed` until `next_message` returns it in a `Message`, or `release` returns it. Then it belongs to
the `Backend` (see there). In replies and on the second socket, where descriptors are not allowed,
it belongs to the caller, who closes it.
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
    "VringBroken",
    "VringCalled",
]
