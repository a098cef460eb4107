"""vconfs mount: find a device, and show its ports as files."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
import trio

from vconfs import fuse
from vconfs.cli import Failure
from vconfs.cli.background import run_in_background
from vconfs.cli.options import MountOptions, parse_options
from vconfs.host.host import HostError
from vconfs.host.port import HostPortSpec
from vconfs.host.spec import parse_port
from vconfs.mounting import Plan, serve_mount
from vconfs.rules import Rule, RulesError, parse_rules

#: The ports of the embedded device when none is asked for.
DEFAULT_PORTS = ("=pty,console", "org.vconfs.echo=echo")


class PortSpec(click.ParamType[HostPortSpec]):
    """NAME=CHARDEV[,OPTION…] on the command line."""

    name = "NAME=CHARDEV[,OPTION…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> HostPortSpec:
        """Read it; what is wrong with it is a usage error."""
        if isinstance(value, HostPortSpec):
            return value
        try:
            return parse_port(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _options(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> MountOptions:
    words = [word for value in values for word in value.split(",")]
    try:
        return parse_options(words)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _config(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Take defaults for the other options from a TOML file."""
    if path is None:
        return
    try:
        config = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: {error}", ctx, param) from None
    unknown = sorted(set(config) - {"device", "dialect", "options", "port", "rules"})
    if unknown:
        raise click.BadParameter(f"{path}: unknown key {unknown[0]!r}", ctx, param)
    if "port" in config:
        config["ports"] = config.pop("port")  # the parameter's own name
    ctx.default_map = {**(ctx.default_map or {}), **config}


def _rules(ctx: click.Context, param: click.Parameter, path: str | None) -> list[Rule]:
    if path is None:
        return []
    try:
        return parse_rules(Path(path).read_text(), path)
    except RulesError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}", ctx, param) from None


@click.command("mount")
@click.option(
    "--config",
    callback=_config,
    is_eager=True,
    expose_value=False,
    help="Options from a TOML file.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("--device", default="embedded", show_default=True, help="Where the ports come from.")
@click.option("--dialect", type=click.Choice(["v8", "virtio1"]), default="v8", show_default=True)
@click.option(
    "--port", "ports", type=PortSpec(), multiple=True, help="A port of the embedded device."
)
@click.option(
    "-o", "--options", multiple=True, callback=_options, help="Mount options, with commas between."
)
@click.option("--rules", callback=_rules, help="Options by port, from a TOML file.", metavar="FILE")
@click.option("--session", type=click.Choice(["vconfs", "pyfuse3"]), default="vconfs", hidden=True)
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(
    foreground: bool,
    device: str,
    dialect: str,
    ports: tuple[HostPortSpec, ...],
    options: MountOptions,
    rules: list[Rule],
    session: Literal["vconfs", "pyfuse3"],
    mountpoint: Path,
) -> None:
    """Mount the ports of a device at MOUNTPOINT.

    With no device, both ends run in this process, and each --port joins one port to something
    outside. With no --port either: a console on a pty, and an echo.

    \b
    CHARDEV is one of:
      unix:PATH  connect:PATH  tcp:HOST:PORT  seqpacket:PATH  pty[:LINK]  pipe:PATH
      file:PATH  exec:COMMAND  stdio  echo  null  zero
    OPTION of a port is one of:
      id=N  console  cache  limit=MiB  host-limit=BYTES
    The -o options are:
      allow_other  mode=0660  uid=USER  gid=GROUP  exclusive  wait  cache
      throttle=enospc|block  limit=BYTES  tty=NAME (a pty beside each port of that name pattern)

    \b
    A file of rules has tables [[port]] with a name pattern or an id, and options for those ports:
      mode  uid  gid  exclusive  wait  cache  throttle  limit  tty

    \b
    Examples:
      vconfs mount /mnt/vcon
      vconfs mount --port org.example.clipboard=unix:/run/clipboard.sock /mnt/vcon
      vconfs mount -f --port log=file:/var/log/guest,cache -o wait,mode=0660 /mnt/vcon
      vconfs mount --port modem=unix:/run/modem.sock -o tty=modem /mnt/vcon
      mount -t fuse.vconfs none /mnt/vcon
    """
    if device != "embedded":
        raise click.BadParameter(
            f"unknown device {device!r}: it is embedded", param_hint="--device"
        )
    specs = ports or tuple(parse_port(port) for port in DEFAULT_PORTS)
    plan = Plan(
        mountpoint,
        specs,
        dialect=dialect,
        port_options=options.port,
        access=options.access,
        allow_other=options.allow_other,
        device=device,
        session=session,
        ttys=options.ttys,
        rules=rules,
    )
    if foreground:
        _serve(plan, lambda: None)
    else:
        run_in_background(lambda ready: _serve(plan, ready))


def _serve(plan: Plan, ready: Callable[[], None]) -> None:
    try:
        trio.run(serve_mount, plan, ready)
    except (HostError, fuse.MountError) as error:
        raise Failure(str(error)) from None
