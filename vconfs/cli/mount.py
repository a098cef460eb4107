"""vconfs mount: open a device, and show its ports as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from vconfs.cli._arguments import Folder, parsed_by
from vconfs.cli._background import run_in_background
from vconfs.cli._config import config_option
from vconfs.cli._logs import log_format_option, log_option, open_log
from vconfs.cli._mount_options import options_option, rules_option
from vconfs.cli._options import MountOptions, patience_with_host, with_config
from vconfs.cli._port_spec import PortSpec, control_option
from vconfs.cli._privilege_option import (
    drop_unneeded,
    keep_privileges_option,
    needs_of_mount,
    starts_program,
)
from vconfs.cli._urls import DEVICE_URL
from vconfs.device.vfio import VfioAddress, needed_capabilities
from vconfs.errors import PeerAbsentError, VconfsError
from vconfs.files.rules import Rule
from vconfs.guest.devices import EMBEDDED, Device, Embedded, parse_device
from vconfs.host.chardevs.stdio import Stdio
from vconfs.host.port import HostPortSpec
from vconfs.host.spec import parse_port
from vconfs.mirror.sockets import Sockets
from vconfs.mounting import Plan, serve_mount
from vconfs.protocol.dialect import DIALECTS
from vconfs.syntax.guest_names import guest_name
from vconfs.system.allocator import collect_only_new_objects
from vconfs.system.signals import survive_hang_ups

#: The ports of the embedded device by default.
DEFAULT_PORTS = ("=pty,console", "org.vconfs.echo=echo")
#: The options that a mount of sockets does not have → why not.
_NOT_OF_SOCKETS: Final = {
    "--once": "the sockets of hypervisors can come again at any time",
    "--dialect": "a socket of a hypervisor has the bytes of one port, without a dialect",
    "--bind": "only a PCI device can be bound",
    "--name": "the guests have the names of their folders",
    "--port": "the ports are the sockets",
    "--control": "the ports are the sockets, which their hypervisors add and remove",
}


class _MountCommand(click.Command):
    """A command whose option --wait-for-host may stand alone, and whose -o may have config=FILE."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        alone = "--wait-for-host"
        words = [f"{it}=forever" if it == alone else it for it in with_config(args)]
        return super().parse_args(ctx, words)


@click.command("mount", cls=_MountCommand, short_help="Mount the ports of a device.")
@config_option
@log_format_option
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option(
    "--device",
    type=DEVICE_URL,
    default=EMBEDDED,
    show_default=True,
    help="Device whose ports to mount.",
)
@click.option("--dialect", type=click.Choice(list(DIALECTS)), help="Protocol dialect.")
@click.option("--once", is_flag=True, help="End when the device is lost; do not try it again.")
@click.option(
    "--wait-for-host",
    callback=parsed_by(patience_with_host),
    metavar="[=TIME]",
    help="Wait for a host end that is not there yet; without TIME, for ever.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name of this guest for a host end with several; by default the host name.",
)
@click.option("--bind", is_flag=True, help="Take a PCI device from its driver until the end.")
@click.option(
    "--port", "ports", type=PortSpec(), multiple=True, help="Port of the embedded device."
)
@control_option
@options_option
@rules_option
@log_option
@keep_privileges_option
@click.option("--source", hidden=True, help="What /proc/mounts shows as the source.")
@click.argument("mountpoint", type=Folder())
def command(
    foreground: bool,
    device: str,
    dialect: str | None,
    once: bool,
    wait_for_host: float | None,
    name: str | None,
    bind: bool,
    ports: tuple[HostPortSpec, ...],
    control: str | None,
    options: MountOptions,
    rules: list[Rule],
    log_path: str | None,
    keep_privileges: bool,
    source: str | None,
    mountpoint: Path,
) -> None:
    """Mount the ports of a device at MOUNTPOINT.

    Without --device, both ends run in this process, and each --port joins one port to something
    outside; without --port, there are a console on a pty and an echo. A device that is lost is
    tried again, and meanwhile its ports stay, hung up. In the background, messages go to the
    system's log, or to the file of --log. SIGHUP reopens that file and the files of ports.

    \b
    DEVICE is one of:
      embedded                     a host end in this process
      pci:ADDRESS                  a virtio console with the driver vfio-pci, or with --bind
      kernel                       the ports of the kernel's own driver, /dev/vport0p1 …
      qtest:DIR[,addr=SLOT.FUNC]   a console of a QEMU process without a guest
                                   (pci and qtest with ,resize=rows-first: the device sends
                                   console sizes in the order that Linux reads)
      stream:PLACE                 a `vconfs host` at the other end of a byte stream; PLACE is
                                   unix:PATH  tcp:HOST:PORT  vsock:CID:PORT  tty:PATH[,baud=N]
                                   exec:COMMAND  stdio, and any with ,window=SIZE
      vhost-user:PATH              a `vconfs host`, or another vhost-user back-end, at a socket
      sockets:GLOB                 the sockets that hypervisors made for their guests' channels, as
                                   MOUNTPOINT/GUEST/by-name/NAME: NAME is the socket's file name,
                                   GUEST the folder above it, or what %g matches in GLOB
    CHARDEV is one of:
      unix:PATH  connect:PATH  tcp:HOST:PORT  seqpacket:PATH  pty[:LINK]  pipe:PATH
      file:PATH  exec:COMMAND  stdio  echo  null  zero
    OPTION of a port is one of:
      id=N  console  cache  limit=SIZE  host-limit=SIZE, and of unix, seqpacket, pipe, file, pty:
      mode=0660  owner=USER  group=GROUP (of what they make; otherwise 0600 and our own)
    A comma of a path is written twice. SIZE is 65536 (bytes), 64K, 4M or 1G.
    The -o options are:
      allow_other  mode=0660  uid=USER  gid=GROUP  exclusive  wait  cache
      throttle=enospc|block|TIME (how long a write waits for a host that wants no more, like 10s,
                                  500ms, 2m; the default is 10s)
      limit=SIZE  tty=NAME (a pty beside each port whose name matches that pattern)
      log=FILE (as --log)
      wait-for-host[=TIME] (as --wait-for-host)
      drain=TIME (how long to wait at the end for a peer that takes no data: 5s)
      ro  noexec  sync  dirsync  noatime  nodiratime  (as for any mount)
      fsname=NAME (what /proc/mounts shows as the source)
      config=FILE (as --config)
    Other options of fstab are accepted and do nothing here, because they are for mount(8) and
    systemd (user, nofail, _netdev, x-systemd.…) or the default (rw, nosuid, nodev, relatime).

    \b
    A file of rules has tables [[port]] with a name pattern or an id, and options for those ports:
      mode  uid  gid  exclusive  wait  cache  throttle  limit  tty

    \b
    Examples:
      vconfs mount /mnt/vcon
      vconfs mount --port org.example.clipboard=unix:/run/clipboard.sock /mnt/vcon
      vconfs mount -f --port log=file:/var/log/guest,cache -o wait,mode=0660 /mnt/vcon
      vconfs mount --control /run/vcon.ctl /mnt/vcon      (and vconfs ctl /run/vcon.ctl add …)
      vconfs mount --device pci:0000:00:05.0 --bind /mnt/vcon
      vconfs mount --device vhost-user:/run/vcon.sock /mnt/vcon
      vconfs mount --device 'stream:exec:ssh host vconfs host --listen stream:stdio' /mnt/vcon
      vconfs mount --device 'sockets:/run/libvirt/qemu/channel/*-%g/*' /srv/guests
      vconfs mount --port modem=unix:/run/modem.sock -o tty=modem /mnt/vcon
      mount -t fuse.vconfs none /mnt/vcon -o config=/etc/vconfs/vcon.toml
    """
    plan = Plan(
        mountpoint,
        source=options.source or source or device,
        port_options=options.port,
        access=options.access,
        allow_other=options.allow_other,
        flags=options.flags,
        ttys=options.ttys,
        rules=rules,
        drain=options.drain,
    )
    opened: Device | Sockets
    if Sockets.has(device):
        given = {
            "--once": once,
            "--dialect": dialect,
            "--bind": bind,
            "--name": name is not None,
            "--port": ports,
            "--control": control,
        }
        opened = _sockets(device, options, rules, given)
    else:
        opened = _device(device, dialect, bind, name, ports, control, options.drain)
    if not foreground and any(isinstance(port.chardev, Stdio) for port in ports):
        why = "stdio is for a mount with -f: in the background it would be /dev/null"
        raise click.BadParameter(why, param_hint="--port")
    open_log(log_path or options.log, mountpoint)

    patience = options.wait_for_host if wait_for_host is None else wait_for_host

    def serve(ready: Callable[[], None]) -> None:
        survive_hang_ups()
        if not keep_privileges:
            _drop_unneeded(device, ports, mountpoint)

        def mounted() -> None:
            collect_only_new_objects()
            ready()

        run = partial(serve_mount, plan, opened, once=once, patience=patience, ready=mounted)
        try:
            trio.run(run)
        except PeerAbsentError as error:
            hint = "" if patience else ": start the host end first, or mount with --wait-for-host"
            raise VconfsError(f"{error}{hint}") from None

    if foreground:
        serve(lambda: None)
    else:
        run_in_background(serve)


def _sockets(
    url: str, options: MountOptions, rules: Sequence[Rule], given: Mapping[str, object]
) -> Sockets:
    """Return the sockets of a url; refuse the options `given` with it that they do not have."""
    for option, value in given.items():
        if value:
            raise click.BadParameter(_NOT_OF_SOCKETS[option], param_hint=option)
    if options.ttys or any(rule.tty for rule in rules):
        where = "-o" if options.ttys else "--rules"
        raise click.BadParameter("tty: there are no ptys beside the sockets", param_hint=where)
    return Sockets.parse(url)


def _drop_unneeded(device: str, ports: Sequence[HostPortSpec], mountpoint: Path) -> None:
    """Drop the privileges that the mount does not need, neither now nor to unmount at its end."""
    needed, by_helper = needs_of_mount(mountpoint)
    if device.startswith("pci:"):
        needed |= needed_capabilities(VfioAddress.parse(device.removeprefix("pci:")))
    drop_unneeded(ports, needed, may_gain=by_helper or starts_program(device))


def _device(
    url: str,
    dialect: str | None,
    bind: bool,
    name: str | None,
    ports: Sequence[HostPortSpec],
    control: str | None,
    drain: float,
) -> Device:
    if url == EMBEDDED:
        if bind:
            raise click.BadParameter("only a PCI device can be bound", param_hint="--bind")
        if name is not None:
            raise click.BadParameter("the host end is this process", param_hint="--name")
        specs = ports or [parse_port(port) for port in DEFAULT_PORTS]
        return Embedded(specs, dialect or "v8", drain, control)
    if name is not None:
        try:
            guest_name(name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--name") from None
    if control is not None:
        raise click.BadParameter(f"the ports of {url} are its host's", param_hint="--control")
    if ports:
        raise click.BadParameter(f"the ports of {url} are its host's", param_hint="--port")
    try:
        return parse_device(url, dialect, bind=bind, name=name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from None
