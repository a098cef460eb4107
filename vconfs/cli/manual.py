"""vconfs manual: the manual pages, generated from the texts of `--help`.

FOLDER/man1/vconfs.1          every command
FOLDER/man5/vconfs.toml.5     the files for --config and --rules
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import click

from vconfs.cli import host, mount, vconfs
from vconfs.cli._config import config_keys
from vconfs.cli._roff import escape, head, literal, paragraph, see_also, table
from vconfs.syntax.values import ACCESS_OPTIONS, OPTION_MEANINGS, PORT_OPTIONS

#: What is in no command's help.
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
_CONFIG_OPTION = ("config", "in fstab, a file of options as for --config")
_FSTAB = "The first field is DEVICE, or none if the file of options names the device."
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
    return {"man1/vconfs.1": _lines(_commands()), "man5/vconfs.toml.5": _lines(_files())}


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _commands() -> Iterator[str]:
    yield from head("vconfs", 1, vconfs.get_short_help_str(200).rstrip("."))
    yield from (".SH SYNOPSIS", r"\fBvconfs\fR \fICOMMAND\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]...")
    yield from (".SH DESCRIPTION", *_help(vconfs))
    yield ".SH COMMANDS"
    for context in commands_below(
        click.Context(vconfs, info_name="vconfs", **vconfs.context_settings)
    ):
        yield from _command(context)
    yield from (".SH MOUNT OPTIONS", *table((*OPTION_MEANINGS.items(), _CONFIG_OPTION)))
    yield from (".SH FSTAB", *paragraph(_FSTAB), *literal([_FSTAB_LINE]))
    yield from (".SH EXIT STATUS", *table(_EXIT_STATUS))
    yield from (".SH FILES", *table(_FILES))
    yield from see_also("vconfs.toml (5)", "mount (8)", "fusermount3 (1)", "getfattr (1)")


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
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {escape(f'{context.command_path} {usage}')}"
    yield from _help(command)
    options = [param for param in command.params if isinstance(param, click.Option)]
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
    yield from see_also("vconfs (1)")


def _help(command: click.Command) -> Iterator[str]:
    """Yield a command's help; a paragraph after \\b keeps its lines."""
    for text in inspect.cleandoc(command.help or "").split("\n\n"):
        if text.startswith("\b\n"):
            yield from _kept(text.splitlines()[1:])
        else:
            yield from paragraph(text)


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
