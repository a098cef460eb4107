"""The v8 dialect's two queues over any byte stream: framing, hello and credit, both ends.

Theory of operation
-------------------
Each end sends a hello, then frames, one for each buffer. All numbers are little-endian.

    hello   8s magic, u16 version, u8 role, u8 flags, u32 window, u64 features, u32 size, config
    frame   u32 size, u8 queue, payload of `size` bytes

The *role* is 0 for the guest end, 1 for the host end: two guests cannot talk, and the echo of a
line is not taken for a peer. The *config* is the host's config space; a guest sends none. The
*magic* has a byte above 127, a CR LF and a NUL, so that a line which is not 8-bit clean cannot
carry it.

Either end may send first, and neither needs to wait for the other. *Features* are the bits that
this end can use. An end that already has the peer's hello sets ANSWER (flags bit 0) in its own and
leaves out features that the peer cannot use; an answer with others is refused. So the negotiated
features are those of both hellos, whichever came first. An end may send frames when both hellos
have been sent and received.

On a line that the peer has not opened yet, a hello is lost. So an end that has sent its hello, and
then receives one that is not an ANSWER, sends its own once more as an ANSWER (`Connection.answer`).
If the peer has received the first one after all, it ignores the answer, which comes before any
frame.

The features are those of the dialect, and bit 63, NAMES, which is the stream's own. A host end that
wants to know which guest this is sets it, and a guest end that has a name. If it is negotiated, the
guest sends a NAME before any other frame. The host end answers with a CONFIG, the config space of
this guest, before any other frame, or with a BYE that says why it does not serve the guest.

    queue     direction        payload
    0 INPUT   host to guest    a buffer of v8's queue 0
    1 OUTPUT  guest to host    a buffer of v8's queue 1
    16, 17                     like 0 and 1, and the sender wants to know when it was seen
    240 CREDIT   both          u32 bytes that were handed on, u32 watched frames that were seen
    241 CONFIG   host to guest the whole changed config space, as long as in the hello
    242 BYE      both          why the sender leaves, as UTF-8; nothing follows
    243 NAME     guest to host the guest's name, as UTF-8: its first frame, if NAMES is negotiated

Credit is for lines without flow control, where unread bytes get lost. The *window* in a hello is
how many bytes the receiver of the hello may have under way; 0 means any number. A whole frame
counts, header included, from when it is sent until a CREDIT counts it back; only CREDIT and BYE
are not counted. The receiver of frames collects acknowledgements until they are half of the
window, so it never has more than two CREDIT frames for them under way. It collects none while the
peer has less than RESERVE left: an end that leaves this much for its control messages can always
send one, even if none of its data is handed on. So an end has at most the window and EXCESS_MAX
bytes under way, and a CREDIT for each watched frame. A payload is at most half a window, less a
header (`max_payload`): when everything was handed on and the peer has not yet sent its last
acknowledgements, a payload still fits, so the two ends cannot wait for each other for ever.

A `WATCHED` frame is counted by the next CREDIT after it was handled. That CREDIT does not wait for
half a window, and is sent even to an end that has granted no window. Everything that the peer sent
before that CREDIT was sent before it had seen the frame, or in answer to it.

A peer that breaks a rule (or another program: a shell, a web server) raises RemoteProtocolError
with the field and its value. The end of the stream is not an error but `Closed`, wherever it
comes, because a peer may be killed at any point.

A line without hang-up, like a tty, does not show that the peer was restarted, and may carry a
kernel's boot messages first. For such lines an end can skip noise before the hello (`noise_max`).
Any other hello where a frame should be raises `PeerRestarted`: the peer has to be met again.
"""

from __future__ import annotations

from typing import Final

from vconfs.protocol._input import MAGIC, Input
from vconfs.protocol._stream_frames import (
    BYE,
    BYE_MAX,
    CONFIG,
    CREDIT,
    CREDIT_FRAME,
    CREDITED,
    EXCESS_MAX,
    HEADER,
    INPUT,
    NAME,
    NAME_MAX,
    NAMES,
    OUTPUT,
    PAYLOAD_MAX,
    RESERVE,
    UNLIMITED,
    WATCHED,
    Closed,
    ConfigChanged,
    CreditReceived,
    Event,
    Frame,
    GuestNamed,
)
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
    "NAME",
    "NAMES",
    "NAME_MAX",
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
    "GuestNamed",
    "Hello",
    "PeerRestarted",
    "Role",
]


#: The start of a hello, read as the header of a frame.
_MAGIC_HEADER: Final = HEADER.unpack_from(MAGIC)


class Connection:
    """One end of a stream.

    `window` is how many bytes the peer may have under way to us; 0 means any number. `noise_max`
    is the most bytes that may come before the peer's hello.
    """

    def __init__(self, role: Role, *, window: int = 0, noise_max: int = 0) -> None:
        if window and not WINDOW_MIN <= window <= WINDOW_MAX:
            raise LocalProtocolError(f"a window is {WINDOW_MIN} to {WINDOW_MAX} bytes or 0")
        self.role = role
        self._window = window
        self._input = Input()
        self._greeting = Greeting(role, window, noise_max)
        self._header: tuple[int, int] | None = None  # size and queue of the incomplete frame
        self._ended: Exception | Closed | None = None
        # Received frames, if we granted a window.
        self._received = 0  # bytes of frames that we have not counted back
        self._handed_on = 0  # those of them that are acknowledged
        self._seen = 0  # watched frames that are acknowledged, but not counted back yet
        # Sent frames.
        #: The number of bytes, headers included, that can be sent now; UNLIMITED if no window.
        self.free: int = 0
        #: The largest payload that the peer's window allows, if its hello has come.
        self.max_payload: int = PAYLOAD_MAX
        self._peer_window = 0
        self._under_way = 0
        self._unseen = 0  # watched frames that the peer has not counted back
        self._named = False  # True once our name was sent
        self._name_due = False  # True while the guest's name has to come before other frames
        self._left = False

    # Receiving

    def feed(self, data: bytes) -> None:
        """Add bytes from the stream. Call `next_event` afterwards, until it returns None.

        Frames that are complete in `data` are views of it.
        """
        self._input.feed(data)

    def feed_eof(self) -> None:
        """Take note that the stream has ended."""
        self._input.eof = True

    def next_event(self) -> Event | None:
        """Return the next event, or None if more bytes are needed, or the peer has left.

        Raise RemoteProtocolError if the peer broke a rule, and again in each further call.
        """
        if self._ended is not None:
            if isinstance(self._ended, Exception):
                raise self._ended
            return None
        try:
            greeted = self._greeting.peer is not None
            event = self._next_frame() if greeted else self._hear()
        except RemoteProtocolError as error:
            self._ended = error
            raise
        if event is None and self._input.eof:
            event = Closed(self._how_it_ended())
        if isinstance(event, Closed):
            self._ended = event
        return event

    @property
    def awaits_more(self) -> bool:
        """True if a frame has begun, and what has come does not complete it."""
        return self._header is not None and len(self._input) < self._header[0]

    @property
    def features(self) -> int:
        """The negotiated features. Raise LocalProtocolError before both ends have said hello."""
        return self._greeting.features

    def acknowledge(self, size: int, *, watched: bool = False) -> None:
        """Take note that a payload (or config) of this size was handed on: see `credit`."""
        self._seen += watched
        if not self._window or self._left:
            return
        self._handed_on += HEADER.size + size
        if self._handed_on > self._received:
            raise LocalProtocolError(f"acknowledged {self._handed_on} of {self._received} bytes")

    def credit(self) -> bytes:
        """Return the CREDIT frame that is due; empty while more is collected first."""
        enough = self._handed_on >= self._window // 2
        urgent = self._window - self._received < RESERVE or self._seen
        if self._left or not (enough or urgent) or not (self._handed_on or self._seen):
            return b""
        credit = CREDIT_FRAME.pack(CREDITED.size, CREDIT, self._handed_on, self._seen)
        self._received -= self._handed_on
        self._handed_on = self._seen = 0
        return credit

    # Sending

    def hello(self, features: int, config: bytes = b"") -> bytes:
        """Return our hello, with the features that we can use and the config space (host end)."""
        hello = self._greeting.say(features, config)
        self._begin_frames()
        return hello

    def answer(self) -> bytes:
        """Return our hello once more if the peer, whose hello has come, may have missed it.

        Send it before any frame. It is empty if the peer certainly has our hello.
        """
        return self._greeting.answer()

    @property
    def room(self) -> int:
        """The largest payload that can be sent now, or 0."""
        return max(0, min(self.max_payload, self.free - HEADER.size))

    def frame_header(self, queue: int, size: int, *, watched: bool = False) -> bytes:
        """Return the header of a payload of `size` bytes; the two must be sent next.

        The peer reports when it has seen a `watched` frame: see `CreditReceived`. Raise
        LocalProtocolError if there is no room for it, or this end does not send on the queue.
        """
        if queue != (OUTPUT if self.role is Role.GUEST else INPUT):
            raise LocalProtocolError(f"a {self.role.name.lower()} does not send on queue {queue}")
        header = self._counted_header(queue + WATCHED if watched else queue, size)
        self._unseen += watched
        return header

    def config(self, config: bytes) -> bytes:
        """Return a frame with the changed config space (host end), which needs room like data."""
        if self.role is not Role.HOST or len(config) != self._greeting.config_size:
            raise LocalProtocolError(
                f"a {self.role.name.lower()} whose config space has "
                f"{self._greeting.config_size} bytes "
                f"cannot send one of {len(config)}"
            )
        return self._counted_header(CONFIG, len(config)) + config

    def name(self, name: str) -> bytes:
        """Return a frame with our name (guest end), the first after the hellos.

        Raise LocalProtocolError if it is too long, or the host end did not ask for it.
        """
        text = name.encode(errors="replace")
        if self.role is not Role.GUEST or not self.features & NAMES or self._named:
            raise LocalProtocolError("the peer did not ask for a name")
        if len(text) > NAME_MAX:
            raise LocalProtocolError(f"a name of {len(text)} bytes is longer than {NAME_MAX}")
        self._named = True
        return self._counted_header(NAME, len(text)) + text

    def bye(self, reason: str) -> bytes:
        """Return a frame that says why we leave, the last to be sent; empty before our hello."""
        if not self._greeting.said or self._left:
            return b""
        self._left = True
        self.free = 0
        text = reason.encode(errors="replace")[:BYE_MAX]
        return HEADER.pack(len(text), BYE) + text

    def _counted_header(self, queue: int, size: int) -> bytes:
        if not 0 <= size <= self.max_payload or HEADER.size + size > self.free:
            raise LocalProtocolError(f"no room for {size} bytes on queue {queue}")
        self._move(HEADER.size + size)
        return HEADER.pack(size, queue)

    def _move(self, size: int) -> None:
        """Take note that `size` more bytes are under way, if the peer has granted a window."""
        if self._peer_window:
            self._under_way += size
            if not self._left:
                self.free = self._peer_window - self._under_way

    # Received frames

    def _hear(self) -> Hello | None:
        hello = self._greeting.hear(self._input)
        self._begin_frames()
        return hello

    def _begin_frames(self) -> None:
        """Allow frames if both ends have said hello."""
        greeting = self._greeting
        if greeting.peer is None or not greeting.said:
            return
        self._peer_window = window = greeting.peer.window
        self.free = window or UNLIMITED
        if window:
            self.max_payload = min(PAYLOAD_MAX, window // 2 - HEADER.size)
        self._name_due = self.role is Role.HOST and bool(self.features & NAMES)

    def _next_frame(self) -> Event | None:
        greeting = self._greeting
        if greeting.hearing_answer and not greeting.hear_answer(self._input):
            return None
        if self._header is None:
            header = self._input.unpack(HEADER)
            if header is None:
                return None
            if header == _MAGIC_HEADER:
                self._input.put_back(MAGIC[: HEADER.size])
                greeting.hear_again()
                return self._next_frame()
            greeting.may_answer = False
            size, queue = header
            self._check_header(size, queue)
            self._header = size, queue
        size, queue = self._header
        payload = self._input.take(size)
        if payload is None:
            return None
        self._header = None
        return self._event(queue, payload)

    def _check_header(self, size: int, queue: int) -> None:
        """Raise RemoteProtocolError for a bad frame, before any of its payload is kept."""
        guest = self.role is Role.GUEST
        if not self._greeting.said:
            raise RemoteProtocolError(f"a frame on queue {queue} before our hello")
        if self._name_due and queue not in (NAME, CREDIT, BYE):
            raise RemoteProtocolError(f"a frame on queue {queue} before the guest's name")
        if queue & ~WATCHED == (INPUT if guest else OUTPUT):
            if size > PAYLOAD_MAX:
                raise RemoteProtocolError(
                    f"a frame of {size} bytes on queue {queue} is larger than {PAYLOAD_MAX}"
                )
        elif queue == CREDIT:
            if size != CREDITED.size:
                raise RemoteProtocolError(f"a CREDIT of {size} bytes, not {CREDITED.size}")
            return
        elif queue == CONFIG and guest:
            if size != (known := self._greeting.config_size):
                raise RemoteProtocolError(
                    f"a config space of {size} bytes, not {known} as in the hello"
                )
        elif queue == NAME and self._name_due:
            if size > NAME_MAX:
                raise RemoteProtocolError(f"a NAME of {size} bytes is larger than {NAME_MAX}")
            self._name_due = False
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
        if queue == NAME:
            return GuestNamed(str(payload, "utf-8", "replace"), len(payload))
        if queue == BYE:
            text = str(payload, "utf-8", "replace")
            return Closed("".join(c if c.isprintable() else "?" for c in text))
        return self._credited(*CREDITED.unpack(payload))

    def _credited(self, size: int, seen: int) -> CreditReceived:
        if size > self._under_way:
            raise RemoteProtocolError(
                f"{size} bytes were acknowledged, but {self._under_way} are under way "
                f"in a window of {self._peer_window}"
            )
        if seen > self._unseen:
            raise RemoteProtocolError(f"{seen} frames were seen, but {self._unseen} are watched")
        self._move(-size)
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
