"""Targets: what people write on the command line and in files, and what is shown to them."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import click

from vconfs.cli import _config, _mount_table
from vconfs.cli._options import option_beginnings, parse_options
from vconfs.cli.mount import command as mount
from vconfs.files.names import id_of_file, link_name, named_by, port_file
from vconfs.files.rules import RulesError, Settings, parse_rules, settings_for
from vconfs.fuse import listed
from vconfs.guest.devices import parse_device
from vconfs.host.listeners import parse_listener
from vconfs.host.spec import parse_port
from vconfs.mirror.sockets import Sockets
from vconfs.syntax.patience import parse_patience
from vconfs.syntax.printable import printable
from vconfs.syntax.times import seconds
from vconfs.system.mountinfo import parse_mounts

from .target import Source, target


@target(ValueError)
def device_url(data: bytes) -> None:
    text = os.fsdecode(data)
    if not Sockets.has(text):
        parse_device(text)
        return
    glob = Sockets.parse(text).glob
    for part in (*glob.folders, glob.files):
        if part.pattern is not None and (found := part.match(text)) and part.names_guest:
            assert found["guest"] in text


@target(ValueError)
def listen_url(data: bytes) -> None:
    parse_listener(os.fsdecode(data))


@target()
def port_spec(data: bytes) -> None:
    text = os.fsdecode(data)
    try:
        spec = parse_port(text)
    except ValueError as error:
        assert "is broken" not in str(error), error
        return
    assert text.startswith(os.fsdecode(spec.name) + "=" + spec.chardev_text)


@target(ValueError)
def mount_options(data: bytes) -> None:
    words = os.fsdecode(data).split(",")
    list(option_beginnings(words[0]))
    parse_options(words)


@target(ValueError)
def times(data: bytes) -> None:
    text = os.fsdecode(data)
    try:
        assert parse_patience(text) >= 0
    except ValueError:
        assert seconds("time", text) >= 0


@target(RulesError)
def rules(data: bytes) -> None:
    source = Source(data)
    name, port_id = source.piece(), source.number()
    found = parse_rules(source.rest().decode(errors="replace"), "rules.toml")
    settings_for(found, port_id, name, Settings())


@target(click.UsageError)
def config_file(data: bytes) -> None:
    file = os.memfd_create("config")
    try:
        os.write(file, data)
        with click.Context(mount) as context:
            option = next(param for param in mount.params if param.name == "config")
            _config._read(context, option, f"/proc/self/fd/{file}")
    finally:
        os.close(file)


_PLACES = b" \t\n\\#"  # what the kernel escapes in /proc/self/mountinfo


def _as_kernel(path: bytes) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in _PLACES else bytes([byte]) for byte in path)


@target()
def mount_table_lines(data: bytes) -> None:
    """Mounts at any paths, as the kernel lists them, are found there and nowhere else."""
    source = Source(data)
    ours: list[bytes] = []
    table = b""
    while source.more:
        is_ours = source.number() % 2
        path = b"/" + source.piece().replace(b"\0", b"")
        what = _as_kernel(source.piece().replace(b"\0", b"")) or b"none"
        kind = b"fuse.vconfs" if is_ours else b"tmpfs"
        ours += [path] * is_ours
        line = (b"36 35 0:%d / " % len(table), _as_kernel(path), b" rw - ", kind, b" ", what)
        table += b"".join((*line, b" rw\n"))
    mounts = list(parse_mounts(table))
    with mock.patch.object(_mount_table, "read_mounts", return_value=mounts):
        assert [os.fsencode(path) for path in _mount_table.all_mounts()] == [
            os.fsencode(Path(os.fsdecode(path))) for path in ours
        ]
    for path in ours:
        if os.fsencode(Path(os.fsdecode(path))) == path:
            assert listed(table, Path(os.fsdecode(path)))
    assert listed(table, Path("/not-there")) == (b"/not-there" in ours)


@target()
def shown_text(data: bytes) -> None:
    assert printable(data).isprintable()
    assert printable(data[: len(data) & ~3].decode("utf-32-le", "replace")).isprintable()
    assert printable(data.decode("ascii", "surrogateescape") + "\ud800\u202e").isprintable()


@target()
def file_names(data: bytes) -> None:
    """A port's name becomes one file name that leads back to it, and never out of its folder."""
    link = link_name(data)
    if link is not None:
        assert b"/" not in link and b"\0" not in link and link not in (b".", b"..")
        assert named_by(link, {link: data}.get) == data
    named_by(data, lambda link: None)
    port_id = id_of_file(data)
    assert port_id is None or port_file(port_id) == data
