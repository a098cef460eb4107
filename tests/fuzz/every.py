"""Every target, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from . import ends, messages, requests, rings, streams, texts, vhost_user
from .target import TARGETS, Target

#: The modules that define targets.
FAMILIES: Final = (ends, messages, requests, rings, streams, texts, vhost_user)

EVERY: Final[Mapping[str, Target]] = dict(sorted(TARGETS.items()))
