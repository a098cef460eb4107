"""Options of a command from a TOML file: the keys are its long options without the dashes.

    device = "stream:unix:/run/vcon.sock"
    options = "wait,mode=0660"          # or a list
    port = ["chat=unix:/run/chat.sock", "log=file:/var/log/guest"]
    once = true

An option on the command line wins over the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import click

from vconfs.cli._arguments import File
from vconfs.syntax.toml import place_of

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def config_keys(command: click.Command) -> Mapping[str, click.Option]:
    """Return the options of a command that a file may set, by their keys."""
    return {
        max(param.opts, key=len).removeprefix("--"): param
        for param in command.params
        if isinstance(param, click.Option) and not param.hidden and param.name != "config"
    }


def read_text(file: str) -> str:
    """Return the text of a file that an option names, or raise ValueError with the reason."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: {error}") from None


#: Reads the tables of a file, which are no options: from its values, its text and its name. Raises
#: ValueError with what is wrong and where.
ReadTables: TypeAlias = Callable[[Mapping[str, Any], str, str], object]
#: Where `tables_of` finds what that returned.
_TABLES: Final = "vconfs.cli.tables"


def tables_of(ctx: click.Context) -> Any:
    """Return what the reader of tables made of the file of options; None without a file."""
    return ctx.meta.get(_TABLES)


def _read(
    ctx: click.Context,
    param: click.Parameter,
    file: str | None,
    tables: Sequence[str] = (),
    read_tables: ReadTables | None = None,
) -> None:
    """Use the values of the file as the defaults of the other options."""
    if file is None:
        return
    try:
        text = read_text(file)
        config = _parse(text, file)
        if read_tables is not None:
            ctx.meta[_TABLES] = read_tables(config, text, file)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    keys = config_keys(ctx.command)
    defaults: dict[str, object] = {}
    for key, value in config.items():
        if key in tables:
            continue
        try:
            if key not in keys:
                raise ValueError(f"unknown key: the keys are {', '.join((*keys, *tables))}")
            defaults[str(keys[key].name)] = _checked(ctx, keys[key], key, value)
        except ValueError as error:
            where = place_of(key, text, file)
            raise click.BadParameter(f"{where}: {key}: {error}", ctx, param) from None
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _parse(text: str, file: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: {error}") from None


def _checked(ctx: click.Context, option: click.Option, key: str, value: object) -> object:
    """Return a value in its form on the command line, or raise ValueError with the reason."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"{key} is true or false, not {value!r}")
        return value
    texts = value if option.multiple and isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        kind = "a text or a list of texts" if option.multiple else "a text"
        raise ValueError(f"{key} is {kind} in quotes, not {value!r}")
    given = texts if option.multiple else texts[0]
    try:
        option.process_value(ctx, given)
    except click.BadParameter as error:
        raise ValueError(error.message) from None
    return given


def config_option_with(
    tables: Sequence[str], read_tables: ReadTables | None
) -> Callable[[_Decorated], _Decorated]:
    """Return the option --config of a command whose file can also have these tables."""
    return click.option(
        "--config",
        type=File(),
        metavar="FILE",
        callback=partial(_read, tables=tables, read_tables=read_tables),
        is_eager=True,
        expose_value=False,
        help="TOML file with options, see vconfs.toml(5).",
    )


#: The option of every command that has many others.
config_option = config_option_with((), None)
