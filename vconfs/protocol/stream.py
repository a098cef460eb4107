"""The v8 dialect's two queues over any byte stream: framing, hello and credit, both ends.

Theory of operation
-------------------
Each end says hello, then frames follow, one for each buffer. All numbers are little-endian.

    hello   8s magic, u16 version, u8 role, u8 flags, u32 window, u64 features, u32 size, config
    frame   u32 size, u8 queue, payload of `size` bytes

The *role* is 0 for the guest end, 1 for the host end: two guests cannot talk, and a line that
echoes is told from a peer. The *config* is the host's config space; a guest sends none. The
*magic* has a byte above 127, a CR LF and a NUL, so that a line which is not 8-bit clean cannot
carry it.

Either end may speak first, and none needs to wait for the other. *Features* are the bits that
this end can use. An end that has the peer's hello already says so (flags bit 0, ANSWER) and
leaves out what the peer cannot use; an answer with more is refused. So the negotiated features
are what both named, whoever spoke first. Frames may be sent when both hellos are there.

On a line that nobody has opened yet, a hello is lost. So an end that has said hello, and then
hears one that is no ANSWER, says its own once more, as an ANSWER (`Connection.answer`). The peer
may have heard the first after all: it passes over the answer, which is the first thing behind it.

    queue     direction        payload
    0 INPUT   host to guest    a buffer of v8's queue 0
    1 OUTPUT  guest to host    a buffer of v8's queue 1
    16, 17                     like 0 and 1, and the sender asks to be told when it was seen
    240 CREDIT   both          u32 bytes that were handed on, u32 watched frames that were seen
    241 CONFIG   host to guest the whole config space, as long as in the hello: it has changed
    242 BYE      both          why the sender leaves, as UTF-8; nothing follows

Credit is for lines without flow control, where bytes that nobody reads get lost. *Window* in the
hello is how many bytes the peer of its sender may have under way, 0: any number. All of a frame
counts, its header too, from when it is sent until a CREDIT counts it back; only CREDIT and BYE are
not counted. The receiver collects acknowledgements until they are half of the window, so there are
never more than two CREDIT frames under way for it. It collects none while the peer has less than
RESERVE left: an end that leaves so much for its control messages can always send one, even if none
of its data is handed on. Hence what an end has under way is at most the window and EXCESS_MAX
bytes, and a CREDIT for each watched frame. A payload is at most half a window, less a header
(`max_payload`): when everything was handed on and the peer still keeps its last acknowledgements
back, that much fits, so the two ends cannot wait for each other for ever.

A frame that asks to be told (`WATCHED`) is counted by the next CREDIT after it was taken in, which
does not wait for half a window then, and is sent to an end that has granted no window, too. What
the peer sent before that CREDIT, it sent before it had seen the frame or in answer to it.

A peer that breaks a rule (or is no peer: a shell, a web server) raises RemoteProtocolError with
the field and its value. The end of the stream is no error here but `Closed`, wherever it comes,
because a peer may be killed anywhere.

A line without hang-up, like a tty, does not tell when the peer was restarted, and may carry a
kernel's boot messages first. For these an end can be told to skip noise before the hello
(`noise_max`). Any other hello where a frame should be raises `PeerRestarted`; `trailing_data`
starts with that hello and can be fed to a new connection.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from attrs import frozen

from vconfs.protocol._input import MAGIC, Input
from vconfs.protocol._stream_hello import (
    WINDOW_MAX,
    WINDOW_MIN,
    Greeting,
    Hello,
    PeerRestarted,
    Role,
)
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "BYE",
    "BYE_MAX",
    "CONFIG",
    "CREDIT",
    "EXCESS_MAX",
    "HEADER",
    "INPUT",
    "OUTPUT",
    "PAYLOAD_MAX",
    "RESERVE",
    "UNLIMITED",
    "WATCHED",
    "WINDOW_MAX",
    "WINDOW_MIN",
    "Closed",
    "ConfigChanged",
    "Connection",
    "CreditReceived",
    "Event",
    "Frame",
    "Hello",
    "PeerRestarted",
    "Role",
]

HEADER: Final = struct.Struct("<IB")
_CREDIT: Final = struct.Struct("<IBII")
_CREDITED: Final = struct.Struct("<II")

INPUT: Final = 0
OUTPUT: Final = 1
#: Added to the number of a queue: the sender asks to be told when this frame was seen.
WATCHED: Final = 16
CREDIT: Final = 240
CONFIG: Final = 241
BYE: Final = 242

#: The largest payload of a frame: a write of 1 MiB, and any header in front of it.
PAYLOAD_MAX: Final = (1 << 20) + 4096
BYE_MAX: Final = 256
#: Bytes of a window that an end leaves for control messages, where it needs to.
RESERVE: Final = 64
#: What may be under way beside a full window: two CREDIT frames, as many more as there are frames
#: in RESERVE, and a BYE.
EXCESS_MAX: Final = (2 + RESERVE // HEADER.size) * _CREDIT.size + HEADER.size + BYE_MAX
#: `Connection.free` where there is no window.
UNLIMITED: Final = 1 << 62


@frozen
class Frame:
    """A buffer of one of v8's queues.

    `payload` is good for as long as it is held. Tell its size to `Connection.acknowledge` when
    it was handed on.
    """

    queue: int
    payload: memoryview
    watched: bool = False


@frozen
class ConfigChanged:
    """The host's config space is now this one; to be acknowledged like a frame."""

    config: bytes


@frozen
class CreditReceived:
    """The peer has handed `size` bytes on, and has seen the `seen` oldest watched frames."""

    size: int
    seen: int = 0


@frozen
class Closed:
    """The peer left: the reason that it gave, or how the stream ended. Nothing follows."""

    reason: str


Event: TypeAlias = Hello | Frame | ConfigChanged | CreditReceived | Closed


class Connection:
    """One end of a stream.

    `window` is what we grant to the peer: how many bytes it may have under way to us, 0: any
    number. `noise_max` is how many bytes may come before the peer's hello.
    """

    def __init__(self, role: Role, *, window: int = 0, noise_max: int = 0) -> None:
        if window and not WINDOW_MIN <= window <= WINDOW_MAX:
            raise LocalProtocolError(f"a window is {WINDOW_MIN} to {WINDOW_MAX} bytes or 0")
        self.role = role
        self._window = window
        self._input = Input()
        self._greeting = Greeting(role, window, noise_max)
        self._header: tuple[int, int] | None = None  # size, queue of the frame that is coming
        self._ended: Exception | Closed | None = None
        # What we receive, where we granted a window.
        self._received = 0  # bytes of frames that are not counted back
        self._handed_on = 0  # those of them that are acknowledged, but not counted back yet
        self._seen = 0  # watched frames that are acknowledged, but not counted back yet
        # What we send.
        self._under_way = 0
        self._unseen = 0  # watched frames that the peer has not counted back
        self._left = False

    # Receiving

    def feed(self, data: bytes) -> None:
        """Take in what came from the stream; look for events afterwards, until there is none.

        Frames are views of `data` where it has them whole.
        """
        self._input.feed(data)

    def feed_eof(self) -> None:
        """Take in that the stream has ended."""
        self._input.eof = True

    def next_event(self) -> Event | None:
        """Give what has happened next; None: more bytes are needed, or the peer has left.

        RemoteProtocolError: the peer broke a rule; it is raised again by each further call.
        """
        if self._ended is not None:
            if isinstance(self._ended, Exception):
                raise self._ended
            return None
        try:
            greeted = self._greeting.peer is not None
            event = self._next_frame() if greeted else self._greeting.hear(self._input)
        except RemoteProtocolError as error:
            self._ended = error
            raise
        if event is None and self._input.eof:
            event = Closed(self._how_it_ended())
        if isinstance(event, Closed):
            self._ended = event
        return event

    @property
    def trailing_data(self) -> bytes:
        """What came and made no event yet, or, after PeerRestarted, from the new hello on."""
        return self._input.rest()

    @property
    def features(self) -> int:
        """The negotiated features. LocalProtocolError: not both ends have said hello."""
        return self._greeting.features

    def acknowledge(self, size: int, *, watched: bool = False) -> None:
        """Note that a payload (or config) of this size was handed on: see `credit`."""
        self._seen += watched
        if not self._window or self._left:
            return
        self._handed_on += HEADER.size + size
        if self._handed_on > self._received:
            raise LocalProtocolError(f"acknowledged {self._handed_on} of {self._received} bytes")

    def credit(self) -> bytes:
        """Return the CREDIT frame that is due, or nothing while more is collected first."""
        enough = self._handed_on >= self._window // 2
        urgent = self._window - self._received < RESERVE or self._seen
        if self._left or not (enough or urgent) or not (self._handed_on or self._seen):
            return b""
        credit = _CREDIT.pack(_CREDITED.size, CREDIT, self._handed_on, self._seen)
        self._received -= self._handed_on
        self._handed_on = self._seen = 0
        return credit

    # Sending

    def hello(self, features: int, config: bytes = b"") -> bytes:
        """Say hello, with the features that we can use and, on the host end, the config space."""
        return self._greeting.say(features, config)

    def answer(self) -> bytes:
        """Say hello once more if the peer, which has spoken now, may have missed it.

        To be sent before any frame; empty where the peer has surely heard us.
        """
        return self._greeting.answer()

    @property
    def max_payload(self) -> int:
        """The largest payload that the peer's window allows; known when its hello has come."""
        peer = self._greeting.peer
        if peer is None or not peer.window:
            return PAYLOAD_MAX
        return min(PAYLOAD_MAX, peer.window // 2 - HEADER.size)

    @property
    def free(self) -> int:
        """How many bytes, headers included, can be sent now; UNLIMITED without a window."""
        peer = self._greeting.peer
        if peer is None or not self._greeting.said or self._left:
            return 0
        return peer.window - self._under_way if peer.window else UNLIMITED

    @property
    def room(self) -> int:
        """The largest payload that can be sent now, 0 where none can."""
        return max(0, min(self.max_payload, self.free - HEADER.size))

    def frame_header(self, queue: int, size: int, *, watched: bool = False) -> bytes:
        """Return what stands in front of a payload of `size` bytes; the two must be sent next.

        The peer tells when it has seen a `watched` frame: see `CreditReceived`.
        LocalProtocolError: there is no room for it, or the queue is not ours to send on.
        """
        if queue != (OUTPUT if self.role is Role.GUEST else INPUT):
            raise LocalProtocolError(f"a {self.role.name.lower()} does not send on queue {queue}")
        header = self._counted_header(queue + WATCHED if watched else queue, size)
        self._unseen += watched
        return header

    def config(self, config: bytes) -> bytes:
        """Say that the config space has changed (host end); it needs room like any payload."""
        if self.role is not Role.HOST or len(config) != self._greeting.config_size:
            raise LocalProtocolError(
                f"a {self.role.name.lower()} whose config space has "
                f"{self._greeting.config_size} bytes "
                f"cannot send one of {len(config)}"
            )
        return self._counted_header(CONFIG, len(config)) + config

    def bye(self, reason: str) -> bytes:
        """Say why we leave; nothing can be sent afterwards. Empty where no hello was said."""
        if not self._greeting.said or self._left:
            return b""
        self._left = True
        text = reason.encode(errors="replace")[:BYE_MAX]
        return HEADER.pack(len(text), BYE) + text

    def _counted_header(self, queue: int, size: int) -> bytes:
        if not 0 <= size <= self.max_payload or HEADER.size + size > self.free:
            raise LocalProtocolError(f"no room for {size} bytes on queue {queue}")
        self._under_way += HEADER.size + size
        return HEADER.pack(size, queue)

    # What came

    def _next_frame(self) -> Event | None:
        greeting = self._greeting
        if greeting.hearing_answer and not greeting.hear_answer(self._input):
            return None
        if self._header is None:
            head = self._input.take(HEADER.size)
            if head is None:
                return None
            size, queue = HEADER.unpack(head)
            if head == MAGIC[: HEADER.size]:
                self._input.put_back(bytes(head))
                greeting.hear_again()
                return self._next_frame()
            greeting.hear_frame()
            self._check_header(size, queue)
            self._header = size, queue
        size, queue = self._header
        payload = self._input.take(size)
        if payload is None:
            return None
        self._header = None
        return self._event(queue, payload)

    def _check_header(self, size: int, queue: int) -> None:
        """Refuse a frame before any of its payload is kept."""
        if not self._greeting.said:
            raise RemoteProtocolError(f"a frame on queue {queue} before our hello")
        guest = self.role is Role.GUEST
        if queue & ~WATCHED == (INPUT if guest else OUTPUT):
            if size > PAYLOAD_MAX:
                raise RemoteProtocolError(
                    f"a frame of {size} bytes on queue {queue} is larger than {PAYLOAD_MAX}"
                )
        elif queue == CREDIT:
            if size != _CREDITED.size:
                raise RemoteProtocolError(f"a CREDIT of {size} bytes, not {_CREDITED.size}")
            return
        elif queue == CONFIG and guest:
            if size != (known := self._greeting.config_size):
                raise RemoteProtocolError(
                    f"a config space of {size} bytes, not {known} as in the hello"
                )
        elif queue == BYE:
            if size > BYE_MAX:
                raise RemoteProtocolError(f"a BYE of {size} bytes is larger than {BYE_MAX}")
            return
        else:
            raise RemoteProtocolError(f"a frame of {size} bytes on unknown queue {queue}")
        if self._window:
            self._received += HEADER.size + size
            if self._received > self._window:
                raise RemoteProtocolError(
                    f"{self._received} bytes are under way in a window of {self._window}"
                )

    def _event(self, queue: int, payload: memoryview) -> Event:
        if queue & ~WATCHED in (INPUT, OUTPUT):
            return Frame(queue & ~WATCHED, payload, bool(queue & WATCHED))
        if queue == CONFIG:
            return ConfigChanged(bytes(payload))
        if queue == BYE:
            text = str(payload, "utf-8", "replace")
            return Closed("".join(c if c.isprintable() else "?" for c in text))
        return self._credited(*_CREDITED.unpack(payload))

    def _credited(self, size: int, seen: int) -> CreditReceived:
        window = self._greeting.peer.window if self._greeting.peer else 0
        if size and (not window or size > self._under_way):
            raise RemoteProtocolError(
                f"{size} bytes were acknowledged, but {self._under_way} are under way "
                f"in a window of {window}"
            )
        if seen > self._unseen:
            raise RemoteProtocolError(f"{seen} frames were seen, but {self._unseen} are watched")
        self._under_way -= size
        self._unseen -= seen
        return CreditReceived(size, seen)

    def _how_it_ended(self) -> str:
        here, greeting = len(self._input), self._greeting
        if greeting.peer is None and not greeting.begun and not here:
            after = f", after {greeting.seen!r}" if greeting.seen else ""
            return f"the stream ended before a hello{after}"
        if greeting.peer is None or greeting.hearing_answer:
            return "the stream ended inside a hello"
        if self._header is not None:
            size, queue = self._header
            return f"the stream ended after {here} of {size} bytes of a frame on queue {queue}"
        return "the stream ended inside a frame's header" if here else "the stream ended"
