"""Globs of paths, and the guest's name in them."""

from __future__ import annotations

import pytest

from vconfs.syntax.globs import parse_glob


@pytest.mark.parametrize(
    ("text", "name", "guest"),
    [
        ("*", "agent", None),
        ("*.sock", "agent.sock", None),
        ("[ab]?.s", "b1.s", None),
        ("[!ab]", "c", None),
        ("*", "a\nb", None),
        (".*", ".hidden", None),
        ("%g.*", "100.qga", "100"),
        ("%g.*", "web.1.agent", "web"),
        ("%g.sock", "web.1.sock", "web.1"),
        ("vm-%g", "vm-web 1", "web 1"),
        ("*-%g", "12-web-1", "web-1"),
        ("domain-*-%g", "domain-12-web-1", "web-1"),
        ("%g-*", "web-1-2", "web"),
        ("%%*", "%x", None),
        ("a.b*", "a.bc", None),
        ("[x*", "[xy", None),
    ],
)
def test_a_pattern_matches(text: str, name: str, guest: str | None) -> None:
    part = parse_glob("sockets", f"/run/{text}").files
    matched = part.match(name)
    assert matched
    assert part.names_guest == (guest is not None)
    assert guest is None or matched["guest"] == guest


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("*", ".hidden"),
        ("?hidden", ".hidden"),
        ("%g", ".hidden"),
        ("*.sock", "agent.socket"),
        ("[!ab]", "a"),
        ("%g.sock", ".sock"),
        ("a.b*", "axbc"),
    ],
)
def test_a_pattern_does_not_match(text: str, name: str) -> None:
    assert not parse_glob("sockets", f"/run/{text}").files.match(name)


def test_parts_without_a_pattern_are_names() -> None:
    glob = parse_glob("sockets", "//run/./100%%/*/agent")
    assert [part.name for part in glob.folders] == ["run", "100%", ""]
    assert [part.pattern is None for part in glob.folders] == [True, True, False]
    assert (glob.files.name, glob.files.pattern) == ("agent", None)
    assert not glob.names_guests
    assert parse_glob("sockets", "/run/%g/agent").names_guests


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "sockets needs a path"),
        ("run/*", "sockets needs whole paths, from / on, not 'run/\\*'"),
        ("/run/../*", "write the path without .."),
        ("/run/**/x", r"\*\* is not known: write a \* for each folder"),
        ("/run/vm/", "needs a pattern for files in folders, like /run/vm/\\*"),
        ("/x", "needs a pattern for files in folders, like /x/\\*"),
        ("/", "needs a pattern for files in folders"),
        ("/run/%g/%g", "%g can be there once"),
        ("/run/%g.%g", "%g can be there once"),
        ("/run/\0", "cannot contain a NUL"),
    ],
)
def test_a_wrong_glob_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_glob("sockets", text)
