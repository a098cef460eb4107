"""Rules: which port gets what, and what is said of a wrong file."""

from __future__ import annotations

import os

import pytest

from vconfs.files.rules import RulesError, Settings, parse_rules, settings_for
from vconfs.files.tree import Access
from vconfs.guest.port import PortOptions

DEFAULT = Settings(PortOptions(limit=100), Access(mode=0o600, uid=1, gid=2))


def settings(text: str, port_id: int = 1, name: bytes = b"org.example.clip") -> Settings:
    return settings_for(parse_rules(text, "r.toml"), port_id, name, DEFAULT)


def test_every_key() -> None:
    text = """
        [[port]]
        name = "org.example.*"
        mode = "0660"
        uid = 5
        gid = 6
        exclusive = true
        cache = true
        limit = "4M"
        wait = true
        throttle = "block"
        tty = true
    """
    assert settings(text) == Settings(
        PortOptions(exclusive=True, wait=True, cache=True, throttle="block", limit=4 << 20),
        Access(0o660, 5, 6),
        True,
    )


@pytest.mark.parametrize(
    ("which", "matches"),
    [
        ('name = "org.example.clip"', True),
        ('name = "org.*"', True),
        ('name = "ORG.*"', False),
        ('name = "org"', False),
        ('name = "*"', True),
        ("id = 1", True),
        ("id = 2", False),
        ('id = 1\nname = "x"', False),
        ('id = 1\nname = "*clip"', True),
    ],
)
def test_which_ports_a_table_is_for(which: str, matches: bool) -> None:
    assert settings(f"[[port]]\n{which}\nwait = true").port.wait is matches


def test_a_later_table_wins_and_the_rest_is_kept() -> None:
    text = (
        '[[port]]\nid=1\nlimit=7\nwait=true\n[[port]]\nname="*"\nlimit=8\n[[port]]\nid=9\nlimit=9'
    )
    assert settings(text) == Settings(PortOptions(limit=8, wait=True), DEFAULT.access)


def test_a_name_may_be_any_bytes() -> None:
    assert settings('[[port]]\nname="?x"\nwait=true', name=b"\xffx").port.wait


def test_names_of_users_and_groups() -> None:
    assert settings('[[port]]\nid=1\nuid="root"\ngid="root"').access == Access(0o600, 0, 0)


def test_an_empty_file_sets_nothing() -> None:
    assert settings("") == DEFAULT
    assert Access().uid == os.getuid()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[port]", "r.toml: Expected ']]'"),
        ("ports = 1", "r.toml:1: ports: unknown key: there are only [[port]] tables"),
        ("[port]\nid = 1", "r.toml:1: port: write it [[port]], with two brackets"),
        ("\nport = [1]", "r.toml:2: port: write it [[port]]"),
        ("\n[[port]]\nwait = true", "r.toml:2: a table needs a name, an id or a guest"),
        ("[[port]]\nid = 1\nwiat = true", "r.toml:3: wiat: unknown key: the keys are name, id"),
        ("[[port]]\nid = 1\nwait = 1", "r.toml:3: wait: wait is true or false, not 1"),
        ("[[port]]\nid = true", "r.toml:2: id: id is a number, not True"),
        ("[[port]]\nid = -1", "r.toml:2: id: id is a number, not -1"),
        ("[[port]]\nname = 3", "r.toml:2: name: name is a text in quotes, not 3"),
        ("[[port]]\nid = 1\nmode = 660", "r.toml:3: mode: mode is a text in quotes, not 660"),
        ('[[port]]\nid = 1\nmode = "999"', "r.toml:3: mode: mode is three octal digits"),
        ("[[port]]\nid = 1\nlimit = 0", "r.toml:3: limit: limit is a size in bytes"),
        ('[[port]]\nid = 1\ngid = "no such"', "r.toml:3: gid: gid is a number or a name"),
        (
            '[[port]]\nid = 1\nwait = true\n[[port]]\nname = "a"\n"throttle" = "never"',
            "r.toml:6: throttle: throttle is enospc, block, or a time like 10s",
        ),
        ("port = [{id = 1, wait = 1}]", "r.toml: wait: wait is true or false"),
    ],
)
def test_an_error_names_file_line_and_key(text: str, message: str) -> None:
    with pytest.raises(RulesError) as wrong:
        parse_rules(text, "r.toml")
    assert str(wrong.value).startswith(message)
    assert "\n" not in str(wrong.value)
