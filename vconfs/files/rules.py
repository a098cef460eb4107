"""Rules: options for some ports of a mount, by their names or ids, from a TOML file.

    [[port]]
    name = "org.example.*"      # a pattern, as in a shell; or id = 3; or both
    mode = "0660"
    gid = "clipboard"
    limit = "4M"

    [[port]]
    id = 0
    tty = false

    [[port]]
    guest = "web*"              # only where a mount has a folder for each guest
    mode = "0660"

Every table that matches a port is applied, in the order of the file, over the options of the
mount: a later table wins. A port that has no name yet is matched as soon as it gets one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from attrs import evolve, field, frozen

from vconfs.files.tree import Access
from vconfs.guest.options import PortOptions
from vconfs.syntax.toml import place_in_array, place_of
from vconfs.syntax.values import ACCESS_OPTIONS, PORT_OPTIONS

#: Options that are true or false in the file.
_FLAGS: Final = ("exclusive", "cache", "wait", "tty")
#: Options that may be a number.
_NUMBERS: Final = ("limit", "uid", "gid")
_KEYS: Final = ("name", "id", "guest", "tty", *PORT_OPTIONS, *ACCESS_OPTIONS)
_ID_MAX: Final = (1 << 32) - 1


class RulesError(ValueError):
    """Error in a file of rules; the message names the file, the line if known, and the key."""


@frozen
class Settings:
    """All settings of one port."""

    port: PortOptions = field(factory=PortOptions)
    access: Access = field(factory=Access)
    tty: bool | None = None  # True if it has a pty; None: only a console has one


@frozen
class Rule:
    """One table: the ports that it is for, and the options that it sets."""

    name: str | None
    id: int | None
    port: Mapping[str, Any]
    access: Mapping[str, Any]
    tty: bool | None
    guest: str | None = None

    def matches(self, port_id: int, name: bytes, guest: str = "") -> bool:
        """True if the rule is for this port, at the host's side for that of a guest."""
        if self.id is not None and self.id != port_id:
            return False
        if self.guest is not None and not fnmatchcase(guest, self.guest):
            return False
        return self.name is None or fnmatchcase(os.fsdecode(name), self.name)

    def apply(self, to: Settings) -> Settings:
        """Return the settings with those of the rule applied."""
        return Settings(
            evolve(to.port, **self.port),
            evolve(to.access, **self.access),
            to.tty if self.tty is None else self.tty,
        )


def settings_for(
    rules: Sequence[Rule], port_id: int, name: bytes, default: Settings, guest: str = ""
) -> Settings:
    """Return the settings for a port; at the host's side, for that of a guest."""
    settings = default
    for rule in rules:
        if rule.matches(port_id, name, guest):
            settings = rule.apply(settings)
    return settings


def parse_rules(text: str, file: str) -> list[Rule]:
    """Parse the text of a file of rules; raise RulesError if it is wrong."""
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{file}: {error}") from None
    for key in config:
        if key != "port":
            where = place_of(key, text, file)
            raise RulesError(f"{where}: {key}: unknown key: there are only [[port]] tables")
    tables = config.get("port", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        where = place_of("port", text, file)
        raise RulesError(f"{where}: port: write it [[port]], with two brackets")
    return [_parse_table(table, index, text, file) for index, table in enumerate(tables)]


def _parse_table(table: Mapping[str, object], index: int, text: str, file: str) -> Rule:
    key = ""
    values: dict[str, Any] = {}
    try:
        for key, value in table.items():
            values[key] = _parse_value(key, value)
        key = ""
        if not table.keys() & {"name", "id", "guest"}:
            raise ValueError("a table needs a name, an id or a guest")
    except ValueError as error:
        where = place_in_array(key, "port", index, text, file)
        raise RulesError(f"{where}: {key + ': ' if key else ''}{error}") from None
    return Rule(
        values.get("name"),
        values.get("id"),
        {key: value for key, value in values.items() if key in PORT_OPTIONS},
        {key: value for key, value in values.items() if key in ACCESS_OPTIONS},
        values.get("tty"),
        values.get("guest"),
    )


def _parse_value(key: str, value: object) -> object:
    if key not in _KEYS:
        raise ValueError(f"unknown key: the keys are {', '.join(_KEYS)}")
    if key == "id":
        if type(value) is not int or not 0 <= value <= _ID_MAX:
            raise ValueError(f"id is a number, not {value!r}")
        return value
    if key in _FLAGS:
        if not isinstance(value, bool):
            raise ValueError(f"{key} is true or false, not {value!r}")
        return value
    if key in _NUMBERS and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key} is a text in quotes, not {value!r}")
    if key in ("name", "guest"):
        return value
    parse = PORT_OPTIONS.get(key) or ACCESS_OPTIONS[key]
    return parse(key, value)
