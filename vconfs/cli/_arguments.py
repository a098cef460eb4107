"""Arguments that name a mount or a port, and the shell's proposals for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from vconfs.cli._find_port import mounts, places
from vconfs.files.names import id_of_file

T = TypeVar("T")


def proposals(words: Iterable[str], incomplete: str) -> list[CompletionItem[Any]]:
    """Return the words that begin with `incomplete`, except those that a shell cannot show."""
    fitting = dict.fromkeys(word for word in words if word.startswith(incomplete))
    return [CompletionItem(word) for word in fitting if word.isprintable()]


def port_names(mount: Path) -> Iterator[str]:
    """Yield the names of a mount's ports if its daemon runs."""
    for file in _port_files(mount):
        with suppress(OSError, UnicodeDecodeError):  # it has no name, or one that cannot be typed
            yield os.getxattr(mount / file, "name").decode()


def _port_files(mount: Path) -> list[str]:
    try:
        files = os.listdir(mount)
    except OSError:
        return []
    return sorted(file for file in files if id_of_file(os.fsencode(file)) is not None)


def parsed_by(parse: Callable[[Any], T]) -> Callable[..., T | None]:
    """Return a callback for an option or argument whose value `parse` reads.

    A ValueError of `parse` is shown as a usage error. An option that is not given stays None.
    """

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> T | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


class File(click.Path):
    """A file or a socket."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name, like that of an unset variable."""
        if not value:
            self.fail("it is empty: name a file", param, ctx)
        return super().convert(value, param, ctx)


class Folder(click.Path):
    """A folder, to mount on."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Refuse an empty name, like that of an unset variable; it would be the current folder.

        Nothing else is checked, because that would hang on a mount whose daemon is stopped.
        """
        if not value:
            self.fail("it is empty: name a folder", param, ctx)
        return Path(os.fsdecode(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Propose folders."""
        return [CompletionItem(incomplete, type="dir")]


class Mount(Folder):
    """The mountpoint of a vconfs mount."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Propose the existing mounts; if none fits, folders, which can be other paths to one."""
        found = proposals(map(str, mounts()), incomplete)
        return found or super().shell_complete(ctx, param, incomplete)


class PortName(click.ParamType[str]):
    """A port: a file, MOUNTPOINT/NAME, or a NAME in any mount."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take it without a check: the port is looked up when it is used."""
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Propose names that only one mount has, and after a mountpoint all its ports."""
        if "/" not in incomplete:
            names = Counter(name for mount in places() for name in port_names(mount))
            found = proposals(sorted(name for name in names if names[name] == 1), incomplete)
        else:
            found = proposals(_paths(places()), incomplete)
        return found or [CompletionItem(incomplete, type="file")]


def _paths(folders: Iterable[Path]) -> Iterator[str]:
    for mount in folders:
        yield from (f"{mount}/{name}" for name in port_names(mount) if "/" not in name)
        yield from (f"{mount}/{file}" for file in _port_files(mount))
