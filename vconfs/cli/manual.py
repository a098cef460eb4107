"""vconfs manual: the manual pages, generated from the texts of `--help`.

FOLDER/man1/vconfs.1              what there is
FOLDER/man1/vconfs-mount.1 …      one page for each command
FOLDER/man5/vconfs.toml.5         the files for --config and --rules
FOLDER/man8/mount.fuse.vconfs.8   the type of mount(8) and fstab, and its options
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import click

from vconfs.cli import host, mount, vconfs
from vconfs.cli._config import config_keys
from vconfs.cli._roff import escape, head, literal, paragraph, see_also, table
from vconfs.syntax.values import ACCESS_OPTIONS, OPTION_MEANINGS, PORT_OPTIONS

#: What is in no command's help.
_HELP_OPTION = ("-h, --help", "Print most of this page, and exit.")
_EXIT_STATUS = (
    ("0", "Success."),
    ("1", "Failure; the reason, and what to do, is on standard error, in one line."),
    ("2", "Usage error."),
)
_FILES = (
    ("MOUNTPOINT/vconN", "a port, by its number"),
    ("MOUNTPOINT/by-name/NAME", "a link to the port with that name"),
    ("MOUNTPOINT/hvcN", "a link to the pty of a console"),
    ("MOUNTPOINT/.events", "the events of the ports, one line of JSON each"),
    ("MOUNTPOINT/.tap", "what passes through the ports, one line of JSON each"),
)
#: The -o options that have no meaning in rules for ports.
_MOUNT_OPTIONS = (
    ("wait-for-host[=TIME]", "wait for a host end that is not there yet; without TIME, for ever"),
    ("log=FILE", "append the log to FILE; SIGHUP reopens it"),
    ("fsname=NAME", "what /proc/mounts shows as the source"),
    ("ro, noexec, sync, dirsync, noatime, nodiratime", "as for any mount"),
)
_TYPE = "mount.fuse.vconfs"
_TYPE_MEANING = "mount the ports of a virtio console by mount(8) and fstab"
_TYPE_USAGE = (
    r"\fBmount\fR \fB\-t fuse.vconfs\fR \fISOURCE\fR \fIMOUNTPOINT\fR "
    r"[\fB\-o\fR \fIOPTION\fR[,...]]"
)
_TYPE_DESCRIPTION = (
    "SOURCE is a DEVICE as for `vconfs mount`, or none for the embedded one or that of the file of "
    "options. mount(8) starts mount.fuse.vconfs, which the Debian package of vconfs has in "
    "/usr/sbin. Without it, mount.fuse of the package fuse3 starts vconfs, which has to be in the "
    "path of mount(8): `vconfs doctor` says if it is not.",
    "Options that are for mount(8) and systemd (user, nofail, _netdev, x-systemd...), or that are "
    "the default (rw, nosuid, nodev, relatime), do nothing here.",
)
_CONFIG_OPTION = ("config=FILE", "a file of options, as for --config")
_FSTAB_LINE = "none  /mnt/vcon  fuse.vconfs  config=/etc/vconfs/vcon.toml,nofail  0  0"
_CONFIG = """
device = "stream:unix:/run/vcon.sock"
options = "wait,mode=0660"
rules = "/etc/vconfs/rules.toml"
"""
_HOST_CONFIG = """
listen = "stream:unix:/run/vcon.sock"
port = ["chat=unix:/run/chat.sock", "log=file:/var/log/guest"]
log-format = "json"
"""
_GUESTS = """
listen = "stream:vsock:-1:7000,guest=*"

[template]
port = "org.example.agent=unix:/run/vconfs/%g/agent.sock,cache"

[[guest]]
name = "web1"
listen = "vhost-user:/run/vconfs/%g/device.sock"
"""
_RULES = """
[[port]]
name = "org.example.*"      # a pattern, as in a shell
mode = "0660"
gid = "clipboard"

[[port]]
id = 0
tty = false
"""


def manual_pages() -> Mapping[str, str]:
    """Return the text of every page, by the name of its file."""
    pages = {f"man1/{_title(context)}.1": _command_page(context) for context in _commands()}
    return {
        name: "\n".join(lines) + "\n"
        for name, lines in {
            "man1/vconfs.1": _overview(),
            **pages,
            "man5/vconfs.toml.5": _files(),
            f"man8/{_TYPE}.8": _type(),
        }.items()
    }


def _commands() -> list[click.Context]:
    """Return the commands that have a page; those of a group are on its page."""
    top = click.Context(vconfs, info_name="vconfs", **vconfs.context_settings)
    return [context for context in commands_below(top) if context.parent is top]


def _title(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _overview() -> Iterator[str]:
    yield from head("vconfs", 1, _meaning(vconfs))
    yield from (".SH SYNOPSIS", r"\fBvconfs\fR \fICOMMAND\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]...")
    yield from (".SH DESCRIPTION", *_description(vconfs))
    commands = _commands()
    yield ".SH COMMANDS"
    yield from table((f"{_title(it)}(1)", it.command.get_short_help_str(200)) for it in commands)
    yield from (".SH EXIT STATUS", *table(_EXIT_STATUS))
    yield from (".SH FILES", *table(_FILES))
    yield from _examples(vconfs)
    pages = [f"{_title(context)} (1)" for context in commands]
    yield from see_also(*pages, "vconfs.toml (5)", f"{_TYPE} (8)", "getfattr (1)")


def _command_page(context: click.Context) -> Iterator[str]:
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    yield from head(_title(context), 1, _meaning(command))
    yield from (".SH SYNOPSIS", rf"\fB{escape(context.command_path)}\fR {escape(usage)}")
    yield from (".SH DESCRIPTION", *_description(command))
    yield from (".SH OPTIONS", *_options(context), *table([_HELP_OPTION]))
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for below in commands_below(context):
            yield from _command(below)
    others = ["vconfs (1)"]
    if command is mount.command:
        yield from (".SH MOUNT OPTIONS", *table((*OPTION_MEANINGS.items(), *_MOUNT_OPTIONS)))
        yield from (".SH FILES", *table(_FILES))
        others += ["vconfs.toml (5)", f"{_TYPE} (8)", "fusermount3 (1)"]
    elif command is host.command:
        others += ["vconfs-ctl (1)", "vconfs.toml (5)"]
    yield from (".SH EXIT STATUS", *table(_EXIT_STATUS))
    yield from _examples(command)
    yield from see_also(*others)


def _type() -> Iterator[str]:
    yield from head(_TYPE, 8, _TYPE_MEANING)
    yield from (".SH SYNOPSIS", _TYPE_USAGE, ".SH DESCRIPTION")
    for text in _TYPE_DESCRIPTION:
        yield from paragraph(text)
    rows = (_CONFIG_OPTION, *OPTION_MEANINGS.items(), *_MOUNT_OPTIONS)
    yield from (".SH OPTIONS", *table(rows))
    yield from (".SH EXAMPLES", *paragraph("In /etc/fstab:"), *literal([_FSTAB_LINE]))
    yield from see_also("vconfs-mount (1)", "vconfs.toml (5)", "fstab (5)", "mount (8)")


def _meaning(command: click.Command) -> str:
    """Return what a command does, as the line NAME has it: without a capital and a full stop."""
    text = command.get_short_help_str(200).rstrip(".")
    return text[:1].lower() + text[1:]


def commands_below(group: click.Context) -> Iterator[click.Context]:
    """Yield the commands of a group, each followed by its own commands."""
    assert isinstance(group.command, click.Group)
    for name in group.command.list_commands(group):
        command = group.command.get_command(group, name)
        assert command is not None
        context = click.Context(command, group, info_name=name)
        if not command.hidden:
            yield context
        if isinstance(command, click.Group):
            yield from commands_below(context)


def _command(context: click.Context) -> Iterator[str]:
    """Yield the part of a page that is about one of the commands of a group."""
    usage = " ".join(context.command.collect_usage_pieces(context))
    yield f".SS {escape(f'{context.command_path} {usage}')}"
    yield from (*_description(context.command), *_options(context))
    for block in _example_blocks(context.command):
        yield from _kept(block)


def _options(context: click.Context) -> Iterator[str]:
    options = [it for it in context.command.params if isinstance(it, click.Option)]
    records = (option.get_help_record(context) for option in options)
    yield from table(record for record in records if record)


def _files() -> Iterator[str]:
    yield from head("vconfs.toml", 5, "options of vconfs commands, and of single ports")
    yield from (".SH DESCRIPTION", *paragraph("These files are written in TOML."))
    for command, example in ((mount.command, _CONFIG), (host.command, _HOST_CONFIG)):
        name = command.name
        yield f".SH OPTIONS OF VCONFS {str(name).upper()}"
        yield from paragraph(
            f"A file for `vconfs {name} --config FILE` has the command's long options as its keys. "
            "A flag is true or false; an option that can be repeated is a string or a list of "
            "strings. The command line wins over the file."
        )
        yield from literal(example.strip().splitlines())
        yield from table((key, option.help or "") for key, option in config_keys(command).items())
    yield ".SH GUESTS OF VCONFS HOST"
    yield from paragraph(
        "A file for `vconfs host --config FILE` can have tables [[guest]], each with a `name`, and "
        "a table [template]. Both can have `listen`, `port` and `dialect`. %g in them is the name "
        "of the guest, and %% is %. What a guest does not say is taken from the template. With a "
        "template, further guests can come by their names, up to its `guests-max` at a time."
    )
    yield from literal(_GUESTS.strip().splitlines())
    yield ".SH RULES FOR PORTS"
    yield from paragraph(
        "A file for `vconfs mount --rules FILE` has tables [[port]]. Each is for the ports whose "
        "name matches the pattern `name`, or for the port with the number `id`, or for a port that "
        "matches both. All tables that a port matches apply, and win over the options of the "
        "mount; a later table wins over an earlier one."
    )
    yield from literal(_RULES.strip().splitlines())
    keys = [*ACCESS_OPTIONS, *PORT_OPTIONS, "tty"]
    yield from table((key, OPTION_MEANINGS[key]) for key in keys)
    yield from see_also("vconfs-mount (1)", "vconfs-host (1)")


def _description(command: click.Command) -> Iterator[str]:
    """Yield a command's help without its examples; a paragraph after \\b keeps its lines."""
    for kept, lines in _paragraphs(command):
        if not kept:
            yield from paragraph(" ".join(lines))
        elif not _is_example(lines):
            yield from _kept(lines)


def _examples(command: click.Command) -> Iterator[str]:
    for lines in _example_blocks(command):
        yield from (".SH EXAMPLES", *_kept(lines[1:]))


def _example_blocks(command: click.Command) -> Iterator[list[str]]:
    yield from (lines for kept, lines in _paragraphs(command) if kept and _is_example(lines))


def _is_example(lines: list[str]) -> bool:
    return re.match("Examples?:", lines[0]) is not None


def _paragraphs(command: click.Command) -> Iterator[tuple[bool, list[str]]]:
    """Yield the paragraphs of a command's help, each with True if its lines are to be kept."""
    for text in inspect.cleandoc(command.help or "").split("\n\n"):
        kept = text.startswith("\b\n")
        yield kept, text.splitlines()[kept:]


def _kept(lines: list[str]) -> Iterator[str]:
    """Yield lines unfilled: indented lines as an example, the others as a paragraph."""
    for indented, group in groupby(lines, lambda line: line.startswith(" ")):
        block = list(group)
        if indented:
            yield from literal([line.removeprefix("  ") for line in block])
        else:
            yield from paragraph(" ".join(block))


@click.command("manual", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Write the manual pages to FOLDER, for example /usr/local/share/man.

    \b
    Example:
      vconfs manual /usr/local/share/man
    """
    for name, text in manual_pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
