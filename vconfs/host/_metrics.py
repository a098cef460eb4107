"""Metrics of a host end for Prometheus: `vconfs host --metrics HOST:PORT`.

A scrape is one HTTP request, GET /metrics. It is answered with the counters of each port of each
guest as they are then; nothing is collected between scrapes. A client that has not sent its request
and taken the answer after a few seconds is left, and a few can be served at a time.

The packages prometheus-client and h11 are needed, which `pip install 'vconfs[metrics]'` installs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import h11
import trio
from attrs import frozen
from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vconfs.host.fleet import Fleet
from vconfs.overrides import override
from vconfs.system.listening import Door, listening_on
from vconfs.system.tasks import open_background
from vconfs.system.unix_sockets import closing

#: How many clients are served at a time; others wait.
_CLIENTS_MAX: Final = 8
#: Seconds that a client has to send its request and to take the answer.
_CLIENT_SECONDS: Final = 10.0
#: The most bytes of a request.
_REQUEST_MAX: Final = 1 << 14
#: After this many ports, other tasks have their turn.
_PORTION: Final = 256


@frozen
class _Of:
    """A metric: its name, what it says, and its value for a guest or a port."""

    name: str
    help: str
    value: Callable[..., float]
    is_counter: bool = True

    def family(self, labels: list[str]) -> CounterMetricFamily | GaugeMetricFamily:
        """Return the metric without values."""
        kind = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        family: CounterMetricFamily | GaugeMetricFamily = kind(self.name, self.help, labels=labels)
        return family


_GUEST_METRICS: Final = (
    _Of("vconfs_guest_connects", "Connections of the guest.", lambda host: host.connects),
    _Of(
        "vconfs_guest_connected",
        "1 while the guest is connected.",
        lambda host: host.guest is not None,
        is_counter=False,
    ),
)
_PORT_METRICS: Final = (
    _Of(
        "vconfs_port_in_bytes",
        "Bytes that came from the guest.",
        lambda port: port.counters.bytes_in,
    ),
    _Of(
        "vconfs_port_out_bytes",
        "Bytes that were sent to the guest.",
        lambda port: port.counters.bytes_out,
    ),
    _Of(
        "vconfs_port_dropped_bytes",
        "Bytes that were dropped by rule.",
        lambda port: port.counters.dropped,
    ),
    _Of(
        "vconfs_port_resets",
        "Times that the guest's data was dropped because it ignored THROTTLE.",
        lambda port: port.counters.resets,
    ),
    _Of(
        "vconfs_port_host_throttled_seconds",
        "Seconds for which the host end wanted no data from the guest.",
        lambda port: port.counters.host_throttled.seconds,
    ),
    _Of(
        "vconfs_port_guest_throttled_seconds",
        "Seconds for which the guest wanted no data from the host end.",
        lambda port: port.counters.guest_throttled.seconds,
    ),
    _Of(
        "vconfs_port_host_connects",
        "Connections of the far side on the host.",
        lambda port: port.counters.connects,
    ),
    _Of("vconfs_port_guest_opens", "Opens by the guest.", lambda port: port.counters.opens),
    _Of(
        "vconfs_port_queued_bytes",
        "Bytes from the guest that the far side has not taken yet.",
        lambda port: port.queued,
        is_counter=False,
    ),
    _Of(
        "vconfs_port_host_connected",
        "1 while the far side on the host is connected.",
        lambda port: port.connected,
        is_counter=False,
    ),
    _Of(
        "vconfs_port_guest_connected",
        "1 while the guest has the port open.",
        lambda port: port.guest_connected,
        is_counter=False,
    ),
)


@frozen
class _Snapshot(Collector):
    """Metrics as they were at one time."""

    metrics: Sequence[Metric]

    @override
    def collect(self) -> Iterable[Metric]:
        return self.metrics


async def take_metrics(fleet: Fleet) -> Sequence[Metric]:
    """Return the metrics of all guests and ports, taken in portions.

    The labels are `guest`, and for ports `port`, the id, and `name`.
    """
    of_guests = [(metric, metric.family(["guest"])) for metric in _GUEST_METRICS]
    of_ports = [(metric, metric.family(["guest", "port", "name"])) for metric in _PORT_METRICS]
    for name, host in fleet.guests.items():
        for metric, family in of_guests:
            family.add_metric([name], float(metric.value(host)))
        for count, port in enumerate(list(host.ports.values())):
            if count % _PORTION == 0:
                await trio.lowlevel.checkpoint()
            labels = [name, str(port.id), port.name.decode(errors="backslashreplace")]
            for metric, family in of_ports:
                family.add_metric(labels, float(metric.value(port)))
    return [family for _, family in (*of_guests, *of_ports)]


async def serve_metrics(
    fleet: Fleet,
    host: str,
    service: int,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer scrapes at this TCP address until cancelled. Raise VconfsError if it is impossible."""
    clients = trio.Semaphore(_CLIENTS_MAX)
    async with listening_on(host, service) as listeners, open_background() as nursery:
        with Door(listeners) as door:
            task_status.started()
            while True:
                await clients.acquire()
                client = await door.accept()
                nursery.start_soon(_serve, client, fleet, clients.release)


async def _serve(client: trio.socket.SocketType, fleet: Fleet, left: Callable[[], None]) -> None:
    try:
        with closing(client), trio.move_on_after(_CLIENT_SECONDS):
            await _answer(trio.SocketStream(client), fleet)
    except trio.BrokenResourceError:
        pass  # the client has left
    finally:
        left()


async def _answer(stream: trio.SocketStream, fleet: Fleet) -> None:
    """Answer one request, which is all that a client gets."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_MAX)
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_REQUEST_MAX))
    except h11.RemoteProtocolError as error:
        reply = _Reply(error.error_status_hint, "text/plain", f"{error}\n".encode())
    else:
        if not isinstance(event, h11.Request):
            return  # the client has left
        reply = await _reply_to(event, fleet)
    headers = [("Content-Type", reply.content_type), ("Content-Length", str(len(reply.body)))]
    response = h11.Response(status_code=reply.status, headers=[*headers, ("Connection", "close")])
    await stream.send_all((connection.send(response) or b"") + reply.body)
    await stream.send_eof()


@frozen
class _Reply:
    status: int
    content_type: str
    body: bytes


async def _reply_to(request: h11.Request, fleet: Fleet) -> _Reply:
    if request.target.partition(b"?")[0] != b"/metrics":
        return _Reply(404, "text/plain", b"the metrics are at /metrics\n")
    if request.method != b"GET":
        return _Reply(405, "text/plain", b"only GET is known here\n")
    accept = next((value for name, value in request.headers if name == b"accept"), b"")
    encode, content_type = choose_encoder(accept.decode("latin-1"))
    snapshot = _Snapshot([*ProcessCollector(registry=None).collect(), *await take_metrics(fleet)])
    # In a thread: the text of many ports takes long to make.
    return _Reply(200, content_type, await trio.to_thread.run_sync(encode, snapshot))
