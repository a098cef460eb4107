"""What all tests share."""

from __future__ import annotations

import socket

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does; the tests have their own limits.
settings.register_profile("vconfs", deadline=None)
settings.load_profile("vconfs")


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port
