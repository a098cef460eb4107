"""Metrics of a host end: their values, and what clients of the address can do."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import until
from tests.unit.host.test_fleet import echoed, fleet_at, guest_at
from vconfs.errors import VconfsError
from vconfs.guest.port import Opener
from vconfs.host import _metrics
from vconfs.host._metrics import serve_metrics, take_metrics
from vconfs.host.fleet import Fleet, open_fleet
from vconfs.host.port import HostPort
from vconfs.host.spec import parse_port
from vconfs.system.stopwatch import Stopwatch
from vconfs.system.tasks import open_background

pytestmark = pytest.mark.expect_log("guest [a-z0-9]+ lost: the guest end leaves")


async def values(fleet: Fleet) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the metrics, by name and by the values of their labels."""
    return {
        metric.name: {
            tuple(sample.labels.values()): sample.value
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }
        for metric in await take_metrics(fleet)
    }


async def test_bytes_connects_and_opens_by_guest_and_port(tmp_path: Path) -> None:
    async with fleet_at(tmp_path, "web1", "web2") as fleet:
        for _ in range(2):
            async with guest_at(f"stream:unix:{tmp_path}/any", "web1") as manager:
                await until(lambda: 0 in manager.ports and manager.ports[0].host_connected)
                opener = Opener(1)
                manager.ports[0].open(opener)
                assert await echoed(manager.ports[0], b"12345") == b"12345"
                manager.ports[0].close(opener)
        found = await values(fleet)
        assert found["vconfs_guest_connects"] == {("web1",): 2, ("web2",): 0}
        assert found["vconfs_port_in_bytes"] == {
            ("web1", "0", "echo"): 10,
            ("web1", "1", "of-web1"): 0,
            ("web2", "0", "echo"): 0,
            ("web2", "1", "of-web2"): 0,
        }
        assert found["vconfs_port_out_bytes"]["web1", "0", "echo"] == 10
        assert found["vconfs_port_guest_opens"]["web1", "0", "echo"] == 2
        assert found["vconfs_port_host_connects"]["web1", "0", "echo"] == 1
        assert found["vconfs_port_host_connected"]["web1", "0", "echo"] == 1
        await until(lambda: fleet.guests["web1"].guest is None)
        assert (await values(fleet))["vconfs_guest_connected"] == {("web1",): 0, ("web2",): 0}


def test_a_stopwatch_counts_while_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    watch = Stopwatch()
    for at, on, expected in [
        (101, False, 0),
        (102, True, 0),
        (103, True, 1),
        (105, False, 3),
        (109, False, 3),
        (110, True, 3),
        (112, False, 5),
    ]:
        now = float(at)
        watch.set(on)
        assert watch.seconds == expected


class Line:
    """A port's way to a guest that sees each request to stop at once."""

    throttles = True
    in_flight = 0

    def open_port(self, port_id: int, opened: bool) -> None: ...
    def nudge(self, port_id: int) -> None: ...
    def refill(self, port_id: int) -> None: ...
    def offer(self, port_id: int, give: object) -> None: ...
    def send_nowait(self, port_id: int, data: object) -> int:
        return 0

    async def send(self, port_id: int, data: object, wanted: object) -> int:
        return 0

    def has_room(self, port_id: int) -> bool:
        return False

    def want_room(self, port_id: int) -> None: ...
    def send_later(self, port_id: int, data: object) -> int:
        return 0

    def throttle(self, port_id: int, on: bool, seen: object) -> None: ...


def test_throttled_time_is_counted_for_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    port = HostPort(0, parse_port("a=null,host-limit=1K"))
    counters = port.counters
    port.connect()
    port.feed(memoryview(bytes(2048)), None)
    now += 5
    assert counters.host_throttled.seconds == 0  # there is no guest
    port.attach(Line())
    now += 1
    port.set_guest_throttled(True)
    now += 2
    port.set_guest_throttled(False)
    now += 4
    port.give_up()
    now += 8
    assert counters.host_throttled.seconds == 7
    assert counters.guest_throttled.seconds == 2
    port.set_guest_throttled(True)
    now += 1
    port.detach()
    now += 1
    assert counters.guest_throttled.seconds == 3


# --- the address --------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
        return number


@asynccontextmanager
async def metrics_of_nothing() -> AsyncIterator[int]:
    """Serve the metrics of no guest; yield the TCP port."""
    service = free_port()
    async with open_fleet() as fleet, open_background() as nursery:
        await nursery.start(serve_metrics, fleet, "127.0.0.1", service)
        yield service


async def answer(service: int, request: bytes) -> tuple[bytes, bytes]:
    """Return the head and the body of the answer."""
    async with await trio.open_tcp_stream("127.0.0.1", service) as stream:
        await stream.send_all(request)
        data = b"".join([piece async for piece in stream])
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


async def test_a_scrape_is_answered_in_the_format_that_it_asks_for() -> None:
    async with metrics_of_nothing() as service:
        head, body = await answer(service, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"text/plain" in head
        names = {family.name for family in text_string_to_metric_families(body.decode())}
        assert {"process_resident_memory_bytes", "vconfs_guest_connects"} <= names
        accept = b"Accept: application/openmetrics-text; version=1.0.0"
        head, body = await answer(
            service, b"GET /metrics HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % accept
        )
        assert b"application/openmetrics-text" in head
        assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"GET /metrics", b"400"),
        (b"\x16\x03\x01", b"400"),
    ],
)
async def test_other_requests_are_refused(request_line: bytes, status: bytes) -> None:
    async with metrics_of_nothing() as service:
        head, _ = await answer(service, request_line + b"\r\nHost: a\r\n\r\n")
        assert head.split()[1] == status
        head, _ = await answer(service, b"GET /metrics HTTP/1.0\r\n\r\n")
        assert head.split()[1] == b"200"


async def test_an_endless_request_ends_early() -> None:
    async with metrics_of_nothing() as service:
        head, _ = await answer(service, b"GET /" + b"x" * 20_000)
        assert head.split()[1] in (b"400", b"431")


async def test_clients_that_say_nothing_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_metrics, "_CLIENT_SECONDS", 0.1)
    async with metrics_of_nothing() as service:
        silent = [await trio.open_tcp_stream("127.0.0.1", service) for _ in range(20)]
        head, _ = await answer(service, b"GET /metrics HTTP/1.0\r\n\r\n")
        assert head.split()[1] == b"200"
        for stream in silent:
            await stream.aclose()


async def test_a_taken_address_is_an_error() -> None:
    async with metrics_of_nothing() as service, open_fleet() as fleet:
        with pytest.raises(VconfsError, match="choose another port"):
            await serve_metrics(fleet, "127.0.0.1", service)
