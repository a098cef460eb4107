"""The options -o and --rules of the commands that mount."""

from __future__ import annotations

from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import File, parsed_by, proposals
from vconfs.cli._config import read_text
from vconfs.cli._options import MountOptions, option_beginnings, parse_options
from vconfs.files.rules import Rule, parse_rules


def _options(values: tuple[str, ...]) -> MountOptions:
    return parse_options([word for value in values for word in value.split(",")])


def _propose_options(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    before = incomplete[: incomplete.rfind(",") + 1]
    options = option_beginnings(incomplete.removeprefix(before))
    return proposals((before + option for option in options), incomplete)


def _rules(ctx: click.Context, param: click.Parameter, path: str | None) -> list[Rule]:
    if path is None:
        return []
    try:
        return parse_rules(read_text(path), path)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


options_option: Final = click.option(
    "-o",
    "--options",
    multiple=True,
    callback=parsed_by(_options),
    shell_complete=_propose_options,
    help="Mount options, separated by commas.",
)
rules_option: Final = click.option(
    "--rules",
    type=File(),
    callback=_rules,
    help="TOML file with options for single ports.",
    metavar="FILE",
)
