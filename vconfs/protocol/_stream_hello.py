"""The hellos of a stream. A hello that may have been lost is sent a second time: see `stream`."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from attrs import frozen

from vconfs.protocol._input import MAGIC, Hunt, Input
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError

VERSION: Final = 2
#: The hello after its magic: version, role, flags, window, features, size of the config.
_REST: Final = struct.Struct("<HBBIQI")
ANSWER: Final = 1 << 0

CONFIG_MAX: Final = 256
#: Half of any window has room for any config space, as for any payload that may be sent.
WINDOW_MIN: Final = 1024
WINDOW_MAX: Final = (1 << 32) - 1


class Role(IntEnum):
    """The role of an end."""

    GUEST = 0
    HOST = 1


class PeerRestarted(RemoteProtocolError):
    """The peer sent a hello where a frame should be: it was restarted."""

    def __init__(self) -> None:
        super().__init__("the peer says hello again: it was restarted")


@frozen
class Hello:
    """The peer's hello: the features that it can use, its config space, the window it grants."""

    features: int
    config: bytes
    window: int


class Greeting:
    """The exchange of hellos, seen from one end.

    `window` is the window that we grant to the peer, `noise_max` the most bytes that may come
    before its hello.
    """

    def __init__(self, role: Role, window: int, noise_max: int) -> None:
        self.role = role
        self._window = window
        # Our hello.
        self._offered: int | None = None  # our features
        self._config = b""
        self._answer_due = False
        # The peer's hello.
        self.peer: Hello | None = None
        self._hunt = Hunt(noise_max)
        self._head: tuple[int, int, int, int, int, int] | None = None
        #: True while the peer's answer may still come: it comes before any frame.
        self.may_answer = False
        #: True if a part of the peer's answer has come.
        self.hearing_answer = False

    # Sending

    @property
    def said(self) -> bool:
        """True if we have sent our hello."""
        return self._offered is not None

    @property
    def features(self) -> int:
        """The negotiated features. Raise LocalProtocolError before both ends have said hello."""
        if self.peer is None or self._offered is None:
            raise LocalProtocolError("not both ends have said hello")
        return self.peer.features & self._offered

    @property
    def config_size(self) -> int:
        """The size of the host's config space in bytes, 0 before the host has said hello."""
        if self.role is Role.HOST:
            return len(self._config)
        return len(self.peer.config) if self.peer else 0

    def say(self, features: int, config: bytes) -> bytes:
        """Return our hello."""
        if self._offered is not None:
            raise LocalProtocolError("said hello already")
        if len(config) > (CONFIG_MAX if self.role is Role.HOST else 0):
            raise LocalProtocolError(f"a config space of {len(config)} bytes in a hello")
        self._offered, self._config = features, config
        return self._hello(features)

    def answer(self) -> bytes:
        """Return our hello once more if the peer, whose hello has come, may have missed it."""
        if not self._answer_due or self._offered is None:
            return b""
        self._answer_due = False
        return self._hello(self._offered)

    def _hello(self, features: int) -> bytes:
        flags = 0
        if self.peer is not None:
            flags = ANSWER
            self._offered = features = features & self.peer.features
        head = (VERSION, self.role, flags, self._window, features, len(self._config))
        return MAGIC + _REST.pack(*head) + self._config

    # Receiving

    def hear(self, source: Input) -> Hello | None:
        """Take the peer's hello. Return None if it has not come completely."""
        heard = self._next(source)
        if heard is None:
            return None
        self.peer, answers = heard
        self._answer_due = self.may_answer = self.said and not answers
        return self.peer

    def hear_again(self) -> None:
        """Begin to take a hello that comes instead of a frame, and must be an answer.

        Raise PeerRestarted if no answer can come.
        """
        if not self.may_answer:
            raise PeerRestarted
        self.may_answer = False
        self.hearing_answer = True
        self._hunt, self._head = Hunt(0), None

    def hear_answer(self, source: Input) -> bool:
        """Take the answer that has begun. Return True if it has come completely."""
        self.hearing_answer = self._next(source) is None
        return not self.hearing_answer

    @property
    def begun(self) -> bool:
        """True if the head of a hello has come."""
        return self._head is not None

    @property
    def seen(self) -> bytes:
        """The first bytes that came."""
        return self._hunt.seen

    def _next(self, source: Input) -> tuple[Hello, bool] | None:
        """Take a hello. Return it, and True if it is an ANSWER, or None if it is not complete."""
        if self._head is None:
            if not self._hunt.found(source):
                return None
            head = source.take(_REST.size)
            if head is None:
                return None
            self._head = _REST.unpack(head)
            self._check(source)
        _, _, flags, window, features, size = self._head
        config = source.take(size)
        if config is None:
            return None
        return Hello(features, bytes(config), window), bool(flags & ANSWER)

    def _check(self, source: Input) -> None:
        assert self._head is not None
        version, role, flags, window, features, size = self._head
        if version != VERSION:
            raise RemoteProtocolError(f"the peer speaks version {version}, not {VERSION}")
        if role == self.role:
            name = self.role.name.lower()
            raise RemoteProtocolError(f"the peer is a {name} end too, or the line echoes")
        if role > Role.HOST:
            raise RemoteProtocolError(f"unknown role {role} in the hello")
        if window and window < WINDOW_MIN:
            raise RemoteProtocolError(f"a window of {window} bytes is less than {WINDOW_MIN}")
        if size > (CONFIG_MAX if role == Role.HOST else 0):
            raise RemoteProtocolError(f"a config space of {size} bytes in the hello")
        if flags & ANSWER:
            self._check_answer(features)
        elif self.hearing_answer:
            source.put_back(MAGIC + _REST.pack(*self._head))
            raise PeerRestarted

    def _check_answer(self, features: int) -> None:
        if self._offered is None:
            raise RemoteProtocolError("the hello answers one that was not sent")
        if more := features & ~self._offered:
            raise RemoteProtocolError(
                f"features {more:#x} were accepted but not offered ({self._offered:#x} were)"
            )
