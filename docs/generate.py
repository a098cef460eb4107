"""Writes what is taken from the code: `python docs/generate.py`. A test checks that it is current.

Parts of the pages, each between two comments:

    <!-- generated: NAME -->
    <!-- end -->

The files of share/: the manual pages, and the completion of each shell.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, Final

import click
import port_states
from click.shell_completion import get_completion_class

import vconfs.cli
import vconfs.cli._completion
import vconfs.cli.host
import vconfs.cli.mount
import vconfs.host
from vconfs.cli._config import config_keys
from vconfs.cli.manual import commands_below, manual_pages
from vconfs.files import _tap_file
from vconfs.files._events_file import EVENTS
from vconfs.files.status import (
    GUEST_MEANINGS,
    GUEST_STATUS,
    MEANINGS,
    ROOT_MEANINGS,
    ROOT_STATUS,
)
from vconfs.guest.devices import DEVICES, EMBEDDED, SOCKETS, dialects_of
from vconfs.host.listeners import LISTENERS
from vconfs.protocol import _vhost_user_messages, v8, virtio1
from vconfs.protocol._vhost_user_backend import _RULES
from vconfs.protocol.control import REQUESTS
from vconfs.protocol.dialect import DIALECTS
from vconfs.syntax.values import OPTION_MEANINGS

_HERE: Final = Path(__file__).parent
_SHARE: Final = _HERE.parent / "share"
#: Where each shell looks for its completion.
_COMPLETIONS: Final = {
    "bash": "bash-completion/completions/vconfs",
    "zsh": "zsh/site-functions/_vconfs",
    "fish": "fish/vendor_completions.d/vconfs.fish",
}
_PART: Final = re.compile(r"(<!-- generated: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
#: The modules that programs may import.
PUBLIC: Final = (
    "vconfs.host",
    "vconfs.guest",
    "vconfs.mounting",
    "vconfs.fuse",
    "vconfs.testing",
)
#: The module whose docstring describes each kind of device.
_DEVICE_MODULES: Final = {
    EMBEDDED: "vconfs.device.embedded",
    "pci": "vconfs.device.vfio",
    "kernel": "vconfs.guest._kernel",
    "qtest": "vconfs.device.qtest.machine",
    "stream": "vconfs.device.stream",
    "vhost-user": "vconfs.device.vhost_user",
    SOCKETS: "vconfs.mirror.sockets",
}


# --- text ---------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def code(word: object) -> str:
    """Return a word as Markdown code."""
    return f"`{word}`"


def prose(text: str) -> str:
    """Return a docstring as Markdown: its indented parts become fenced blocks."""
    text = re.sub(r"^Theory of operation\n-+\n", "", dedent(text), flags=re.MULTILINE)
    text = re.sub(r"^(.+)\n-{3,}$", r"### \1", text, flags=re.MULTILINE)
    parts = re.split(r"\n\n(?=    )(.*?)(?=\n\n\S|\Z)", text.strip(), flags=re.DOTALL)
    return "\n\n".join(
        f"```{kind(part)}\n{dedent(part)}\n```" if number % 2 else part.strip("\n")
        for number, part in enumerate(parts)
    )


def kind(block: str) -> str:
    """Return the language of an indented part of a docstring."""
    return "python" if re.search(r"\bawait\b|\basync\b", block) else "text"


def doc(thing: object) -> str:
    """Return the whole docstring of an object, as Markdown."""
    return prose(inspect.getdoc(thing) or "")


def first_paragraph(thing: object) -> str:
    """Return the first paragraph of an object's docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


# --- the parts ----------------------------------------------------------------------------


def attributes() -> str:
    """Return a table of the extended attributes of ports and of the mount."""
    rows = [(code(name.decode()), meaning) for name, meaning in MEANINGS.items()]
    root = [(code(name.decode()), ROOT_MEANINGS[name]) for name in ROOT_STATUS]
    return table(("attribute", "meaning"), [*rows, *root])


def guest_attributes() -> str:
    """Return a table of the extended attributes of a guest's folder."""
    rows = [(code(name.decode()), GUEST_MEANINGS[name]) for name in GUEST_STATUS]
    return table(("attribute of a guest's folder", "meaning"), rows)


def options() -> str:
    """Return a table of the options of mounts and rules."""
    return table(("option", "meaning"), [(code(key), it) for key, it in OPTION_MEANINGS.items()])


def events() -> str:
    """Return a table of the events that are changes of a flag."""
    rows = [(code(flag), code(begins), code(ends)) for flag, (begins, ends) in EVENTS.items()]
    return table(("flag", "event when it becomes true", "when it becomes false"), rows)


def chardevs() -> str:
    """Return a section for each kind of chardev."""
    return "\n".join(_chardevs())


def _chardevs() -> Iterator[str]:
    for entry in sorted(entry_points(group="vconfs.chardevs"), key=lambda entry: entry.name):
        kind = entry.load()
        argument = first_paragraph(kind.parse).removeprefix("Take ")
        options = ", ".join(map(code, kind.options or ()))
        takes = f" *Options:* {options}." if options else ""
        yield f"### {entry.name}\n\n{doc(kind)}\n\n*Argument:* {argument}{takes}\n"


def devices() -> str:
    """Return a section for each kind of device, with its dialects."""
    parts = []
    for scheme, module in _DEVICE_MODULES.items():
        spoken = " or ".join(map(code, dialects_of(scheme))) or "none"
        about = doc(importlib.import_module(module))
        parts.append(f"## {scheme}\n\n{about}\n\n*Dialect:* {spoken}.\n")
    assert set(_DEVICE_MODULES) == set(DEVICES)
    return "\n".join(parts)


def listeners() -> str:
    """Return a table of the URLs of `vconfs host --listen`, with their dialects."""
    rows = [(code(f"{it}:…"), ", ".join(map(code, LISTENERS[it].dialects))) for it in LISTENERS]
    return table(("URL", "dialects"), rows)


def control_events(dialect: ModuleType) -> Callable[[], str]:
    """Return a function that returns the table of a dialect's control events."""

    def meaning(end: Any, event: IntEnum) -> str:
        handler = end._handlers.get(event)
        return first_paragraph(type(handler(1, 1, memoryview(bytes(4))))) if handler else "–"

    def write() -> str:
        rows = [
            (
                str(event.value),
                code(event.name),
                meaning(dialect.GuestEnd, event),
                meaning(dialect.HostEnd, event),
            )
            for event in dialect.ControlEvent
        ]
        return table(("event", "name", "to the guest", "to the host"), rows)

    return write


def vhost_user_requests() -> str:
    """Return a table of the requests that the vhost-user back-end accepts."""
    names = {
        value: name
        for name, value in vars(_vhost_user_messages).items()
        if name.startswith("PF_") and isinstance(value, int)
    }
    rows = [
        (
            str(number),
            code(_vhost_user_messages.Request(number).name),
            code(names[rule.feature]) if rule.feature else "–",
            "by a reply" if rule.answered else "if asked to",
        )
        for number, rule in sorted(_RULES.items())
    ]
    return table(("request", "name", "protocol feature", "answered"), rows)


def features() -> str:
    """Return a table of the feature bits of both dialects."""
    bits = {
        "SIZE": v8.F_SIZE,
        "MULTIPORT": v8.F_MULTIPORT,
        "EMERG_WRITE": virtio1.F_EMERG_WRITE,
        "PORT_EVENTS": v8.F_PORT_EVENTS,
    }
    speakers = {
        name: [key for key, dialect in DIALECTS.items() if dialect.features & bit]
        for name, bit in bits.items()
    }
    rows = [
        (str(bit.bit_length() - 1), code(name), ", ".join(speakers[name]) or "where it can be done")
        for name, bit in bits.items()
    ]
    return table(("bit", "feature", "offered by"), rows)


def requests() -> str:
    """Return a table of the requests of the control protocol."""
    rows = []
    for op, kind in REQUESTS.items():
        fields = ", ".join(code(field) for field in inspect.get_annotations(kind))
        rows.append((code(op), fields or "none", first_paragraph(kind)))
    return table(("`op`", "fields", "what it asks for"), rows)


def commands() -> str:
    """Return a section for each command, with its help."""
    command = vconfs.cli.vconfs
    top = click.Context(command, info_name="vconfs", **command.context_settings)
    return "\n".join(_command(below.command_path, below.command) for below in commands_below(top))


def _command(path: str, command: click.Command) -> str:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    words = [path, *(it.metavar or str(it.name).upper() for it in arguments)]
    options = [
        (code(", ".join(it.opts)), it.help or "")
        for it in command.params
        if isinstance(it, click.Option) and not it.hidden
    ]
    shown = f"\n{table(('option', 'meaning'), options)}" if options else ""
    return f"## {path}\n\n`{' '.join(words)}`\n\n{_help(command.help or '')}\n{shown}"


def _help(text: str) -> str:
    """Return a command's help as Markdown; a paragraph that starts with \\b becomes a block."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```text\n{part[2:]}\n```" if part.startswith("\b\n") else part for part in parts
    )


def config(command: click.Command) -> Callable[[], str]:
    """Return a function that returns the table of keys of a command's file of options."""
    rows = [(code(key), option.help or "") for key, option in config_keys(command).items()]
    return lambda: table(("key", "meaning"), rows)


def theory(module: str) -> Callable[[], str]:
    """Return a function that returns the docstring of a module of `vconfs.protocol`."""
    return lambda: doc(importlib.import_module(f"vconfs.protocol.{module}")) + "\n"


def python() -> str:
    """Return a section for each public module, with a table of its names."""
    return "\n".join(map(_public_module, PUBLIC))


def _public_module(name: str) -> str:
    module = importlib.import_module(name)
    rows = [
        (code(public), first_paragraph(getattr(module, public)))
        for public in sorted(module.__all__, key=str.lower)
    ]
    return f"## {name}\n\n{first_paragraph(module)}\n\n{table(('name', 'what it is'), rows)}"


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "attributes": attributes,
    "guest attributes": guest_attributes,
    "options": options,
    "events": events,
    "port calls": port_states.calls,
    "port states": port_states.diagram,
    "commands": commands,
    "config of mount": config(vconfs.cli.mount.command),
    "config of host": config(vconfs.cli.host.command),
    "chardevs": chardevs,
    "devices": devices,
    "listeners": listeners,
    "python": python,
    "host": lambda: doc(vconfs.host) + "\n",
    "features": features,
    "v8": theory("v8"),
    "v8 control events": control_events(v8),
    "virtio1": theory("virtio1"),
    "virtio1 control events": control_events(virtio1),
    "stream": theory("stream"),
    "vhost-user": theory("vhost_user"),
    "vhost-user requests": vhost_user_requests,
    "virtqueue": theory("virtqueue"),
    "virtio-pci": theory("virtio_pci"),
    "control": theory("control"),
    "tap": theory("tap"),
    "tap file": lambda: doc(_tap_file).partition("\n\n")[2] + "\n",
    "control requests": requests,
}


def pages() -> dict[Path, str]:
    """Return the text that each page should have."""
    return {
        page: _PART.sub(
            lambda part: f"{part[1]}{PARTS[part[2]]().rstrip()}\n{part[3]}", page.read_text()
        )
        for page in sorted(_HERE.rglob("*.md"))
    }


def shared_files() -> dict[Path, str]:
    """Return the text of each file of share/."""
    manual = {_SHARE / "man" / name: text for name, text in manual_pages().items()}
    return {**manual, **{_SHARE / name: completion(it) for it, name in _COMPLETIONS.items()}}


def completion(shell: str) -> str:
    """Return the script that completes our command lines in a shell."""
    script = get_completion_class(shell)
    assert script is not None
    text = script(vconfs.cli.vconfs, {}, "vconfs", "_VCONFS_COMPLETE").source()
    return text.rstrip("\n") + "\n"


def files() -> dict[Path, str]:
    """Return the text that each file should have that is taken from the code, or has such parts."""
    return {**pages(), **shared_files()}


def current(file: Path) -> str | None:
    """Return the text that a file has; None if there is no such file."""
    return file.read_text(encoding="utf-8") if file.exists() else None


def main() -> None:
    """Write the files anew, and print the names of those that were out of date."""
    wanted = files()
    for file, text in wanted.items():
        if current(file) != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(file.relative_to(_HERE.parent), file=sys.stderr)
    for file in leftover(wanted):
        file.unlink()
        print(file.relative_to(_HERE.parent), "is removed", file=sys.stderr)


def leftover(wanted: Iterable[Path]) -> list[Path]:
    """Return the files of share/ that nothing makes any more."""
    return sorted({file for file in _SHARE.rglob("*") if file.is_file()} - set(wanted))


if __name__ == "__main__":
    main()
