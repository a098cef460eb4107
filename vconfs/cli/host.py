"""vconfs host: the host end of the ports, for guests in other processes."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from vconfs.cli._arguments import Folder, parsed_by
from vconfs.cli._config import config_option_with, tables_of
from vconfs.cli._guests import guests_of, read_tables
from vconfs.cli._logs import log_format_option, log_option, open_log
from vconfs.cli._mount_options import options_option, rules_option
from vconfs.cli._options import MountOptions
from vconfs.cli._port_spec import PortText, control_option
from vconfs.cli._privilege_option import drop_unneeded, keep_privileges_option, needs_of_mount
from vconfs.cli._urls import LISTEN_URL
from vconfs.files.rules import Rule
from vconfs.host.serving import Plan, serve_host
from vconfs.link.draining import DRAIN_TIME
from vconfs.mounting import HostMount
from vconfs.mounting import Plan as MountPlan
from vconfs.protocol.dialect import DIALECTS
from vconfs.syntax.addresses import tcp_address
from vconfs.syntax.times import seconds
from vconfs.system.allocator import collect_only_new_objects
from vconfs.system.signals import survive_hang_ups

log: Final = logging.getLogger(__name__)

#: How many addresses are logged one by one.
_SHOWN: Final = 10
#: The -o options that a mount of the host's side does not have → what is used there.
_OF_GUESTS: Final = {
    "drain": "use --drain",
    "log": "use --log",
    "ttys": "here a port that needs a pty has the chardev pty",
    "wait_for_host": "a host end waits for its guests",
}


def _metrics_address(text: str) -> tuple[str, int]:
    try:
        return tcp_address(text)
    except ValueError:
        raise ValueError(f"an address is HOST:PORT, not {text!r}") from None


@click.command("host", short_help="Serve ports to guests in other processes.")
@config_option_with(("guest", "template"), read_tables)
@log_format_option
@click.option("--listen", "urls", type=LISTEN_URL, multiple=True, help="Address to listen on.")
@click.option("--dialect", type=click.Choice(list(DIALECTS)), help="Protocol dialect.")
@click.option("--port", "ports", type=PortText(), multiple=True, help="Port to serve.")
@control_option
@click.option(
    "--metrics",
    callback=parsed_by(_metrics_address),
    metavar="HOST:PORT",
    help="Address where Prometheus can scrape metrics.",
)
@click.option(
    "--mount",
    "mountpoint",
    type=Folder(),
    metavar="DIR",
    help="Folder to mount with the ports of the chardev mount.",
)
@options_option
@rules_option
@log_option
@click.option(
    "--drain",
    callback=parsed_by(partial(seconds, "--drain")),
    default=f"{DRAIN_TIME:g}s",
    show_default=True,
    metavar="TIME",
    help="How long to wait at the end for a peer that takes no data.",
)
@keep_privileges_option
@click.pass_context
def command(
    ctx: click.Context,
    urls: tuple[str, ...],
    dialect: str | None,
    ports: tuple[str, ...],
    control: str | None,
    metrics: tuple[str, int] | None,
    mountpoint: Path | None,
    options: MountOptions,
    rules: list[Rule],
    log_path: str | None,
    drain: float,
    keep_privileges: bool,
) -> None:
    """Serve ports to a guest that connects to URL, and to the next guest when it has left.

    With several --listen, or tables in the file of --config, it serves several guests, each with
    ports of its own; %g in a path or a name is the name of the guest.

    It stays in the foreground. On SIGINT or SIGTERM it delivers all data that it has accepted, and
    ends; on a second signal it ends at once. On SIGHUP it reopens its log and the files of ports.
    The ports stay when a guest leaves. Their syntax is that of `vconfs mount`.

    With --mount, the host's side of each port with the chardev mount is a file: DIR/GUEST/vconN,
    and by its name DIR/GUEST/by-name/NAME. It behaves as the files of a guest's mount do: opening
    it connects the port, and the last close disconnects it. Unmounting DIR ends the host end, too.
    -o takes the options of `vconfs mount` except drain, limit, log, tty and wait-for-host. A table
    [[port]] of --rules can have guest = "PATTERN", too.

    \b
    URL is one of:
      stream:unix:PATH             a unix socket
      stream:tcp:HOST:PORT         a TCP port
      stream:vsock:CID:PORT        a port to virtual machines; -1 is any CID
      stream:tty:PATH[,baud=N]     a serial line
      stream:exec:COMMAND          the input and output of a shell command
      stream:stdio                 our own input and output; ends with them
      vhost-user:PATH              a hypervisor or vconfs mount, over shared memory
    Any stream takes ,window=SIZE, the most that may be on its way to us (4M, on a tty 2K). A
    comma of a path is written twice.
    vhost-user takes ,inband (offer notifications by message), ,require-seals (take only memory
    that cannot shrink while it is in use) and, with --dialect virtio1, ,max-ports=N (31 by default)
    and ,resize=rows-first (send console sizes in the order that Linux reads).
    Any URL takes ,guest=NAME, the guest that it is for (by default the file name of its path).
    Streams take ,guest=*: for any guest, which says its name (see --name of `vconfs mount`).

    \b
    Examples:
      vconfs host --listen stream:unix:/run/vcon.sock --port chat=unix:/run/chat.sock
      vconfs mount --device stream:unix:/run/vcon.sock /mnt/vcon      (the guest of it)
      vconfs host --listen vhost-user:/run/vcon.sock,max-ports=8 --dialect virtio1 --port log=null
      vconfs host --listen stream:tty:/dev/ttyS0,baud=115200 --port log=file:/var/log/guest
      vconfs host --listen stream:unix:/run/vcon.sock --control /run/vcon.ctl
      vconfs ctl /run/vcon.ctl add chat=unix:/run/chat.sock           (one more port, at run time)
      vconfs host --listen stream:unix:/run/vcon.sock --port log=null --metrics localhost:9325
      vconfs host --listen 'stream:unix:/run/any.sock,guest=*' --port chat=unix:/run/%g/chat.sock
      vconfs host --listen 'stream:unix:/run/any.sock,guest=*' --mount /srv/guests --port chat=mount
    """
    tables = tables_of(ctx)
    if not urls and tables is None:
        raise click.MissingParameter(ctx=ctx, param_type="option", param_hint="'--listen'")
    if ports and tables is not None:
        why = "the ports of guests are in their tables, [[guest]] and [template]"
        raise click.BadParameter(why, param_hint="--port")
    try:
        guests = guests_of(urls, dialect, ports, tables)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None
    plan = Plan(guests, control, metrics, drain, _host_mount(mountpoint, options, rules, drain))

    def ready() -> None:
        collect_only_new_objects()
        for url in guests.urls[:_SHOWN]:
            log.info("listening on %s", url)
        if more := guests.urls[_SHOWN:]:
            log.info("listening on %d more addresses, the last is %s", len(more), more[-1])

    open_log(log_path, mountpoint)
    survive_hang_ups()
    if not keep_privileges:
        listeners = [*guests.listeners, *(it for one in guests.samples for it in one.listeners)]
        needed, by_helper = (set(), False) if mountpoint is None else needs_of_mount(mountpoint)
        drop_unneeded(
            [port for guest in guests.samples for port in guest.ports],
            needed,
            may_gain=by_helper or any(listener.starts_program for listener in listeners),
        )
    trio.run(serve_host, plan, ready)


def _host_mount(
    mountpoint: Path | None, options: MountOptions, rules: list[Rule], drain: float
) -> HostMount | None:
    if mountpoint is None:
        if options != MountOptions() or rules:
            raise click.UsageError("-o and --rules are for the files of --mount")
        return None
    default = MountOptions()
    for name, other in _OF_GUESTS.items():
        if getattr(options, name) != getattr(default, name):
            raise click.BadParameter(f"this is for the mount of a guest: {other}", param_hint="-o")
    if any(rule.tty for rule in rules):
        raise click.BadParameter(f"tty: {_OF_GUESTS['ttys']}", param_hint="--rules")
    if options.port.limit is not None or any("limit" in rule.port for rule in rules):
        why = "the limit of a port is its host-limit here: NAME=mount,host-limit=SIZE"
        where = "-o" if options.port.limit is not None else "--rules"
        raise click.BadParameter(why, param_hint=where)
    return HostMount(
        MountPlan(
            mountpoint,
            source=options.source or "vconfs-host",
            port_options=options.port,
            access=options.access,
            allow_other=options.allow_other,
            flags=options.flags,
            rules=rules,
            drain=drain,
        )
    )
