"""The control protocol: what each request looks like, and what a line can have wrong."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from vconfs.protocol import control
from vconfs.protocol.control import LINE_MAX
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.lines import LineReader

SCHEMA: dict[str, Any] = json.loads(
    files("vconfs.protocol").joinpath("control.schema.json").read_text()
)
VALIDATOR = Draft202012Validator(SCHEMA)

REQUESTS = [
    (control.List(), b'{"op": "list"}'),
    (control.Add("a=unix:/a,id=3"), b'{"op": "add", "spec": "a=unix:/a,id=3"}'),
    (control.Remove(7), b'{"op": "remove", "port": 7}'),
    (control.Rename("a", "\xe9"), b'{"op": "rename", "port": "a", "name": "\\u00e9"}'),
    (control.Rename("\udcff", ""), b'{"op": "rename", "port": "\\udcff", "name": ""}'),
    (control.Throttle(0, True), b'{"op": "throttle", "port": 0, "on": true}'),
    (control.Limit("a", 65535), b'{"op": "limit", "port": "a", "mib": 65535}'),
    (control.Cache(1, False), b'{"op": "cache", "port": 1, "on": false}'),
    (control.Resize(0, 80, 0), b'{"op": "resize", "port": 0, "cols": 80, "rows": 0}'),
    (control.Disconnect("a"), b'{"op": "disconnect", "port": "a"}'),
    (control.Tap([0, "a"]), b'{"op": "tap", "ports": [0, "a"]}'),
    (control.Tap([]), b'{"op": "tap", "ports": []}'),
    (
        control.Tap(["a"], guest="web1"),
        b'{"op": "tap", "ports": ["a"], "guest": "web1"}',
    ),
    (control.Remove(7, guest="web1"), b'{"op": "remove", "port": 7, "guest": "web1"}'),
    (control.List(guest="web1"), b'{"op": "list", "guest": "web1"}'),
    (control.GuestList(), b'{"op": "guest-list"}'),
    (control.GuestAdd("web1"), b'{"op": "guest-add", "name": "web1"}'),
    (control.GuestRemove("web1"), b'{"op": "guest-remove", "name": "web1"}'),
]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(("asked", "line"), REQUESTS)
def test_a_request_is_this_line(asked: control.Request, line: bytes) -> None:
    assert control.encode_request(asked) == line + b"\n"
    assert control.parse_request(line) == asked
    VALIDATOR.validate(json.loads(line))


def test_every_request_is_in_the_table() -> None:
    assert {type(request) for request, _ in REQUESTS} == set(control.REQUESTS.values())


OPS = (
    "list, add, remove, rename, throttle, limit, cache, resize, disconnect, tap, guest-list,"
    " guest-add, guest-remove"
)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", "this line is not JSON"),
        (b"list", "this line is not JSON"),
        (b'{"op": "list"', "this line is not JSON"),
        (b'{"op": "\xff"}', "this line is not UTF-8"),
        (b"[" * 60_000, "this line is not JSON"),
        (b"1" * 60_000, "this line is not JSON"),
        (b"[]", "this line is not a JSON object"),
        (b"7", "this line is not a JSON object"),
        (b"{}", f"op is null: it is one of {OPS}"),
        (b'{"op": "explode"}', f'op is "explode": it is one of {OPS}'),
        (b'{"op": ["list"]}', f'op is ["list"]: it is one of {OPS}'),
        (b'{"op": "list", "port": 1}', 'list has no "port"'),
        (b'{"op": "remove"}', "remove needs port, an id or a name"),
        (b'{"op": "remove", "port": null}', "port is an id or a name, not null"),
        (b'{"op": "remove", "port": true}', "port is an id or a name, not true"),
        (b'{"op": "remove", "port": 1.0}', "port is an id or a name, not 1.0"),
        (b'{"op": "remove", "port": "\\ud800"}', 'port is an id or a name, not "\\ud800"'),
        (b'{"op": "tap"}', "tap needs ports, a list of ids and names"),
        (b'{"op": "tap", "ports": 1}', "ports is a list of ids and names, not 1"),
        (b'{"op": "tap", "ports": [null]}', "ports is a list of ids and names, not [null]"),
        (b'{"op": "add", "spec": 5}', "spec is a string, not 5"),
        (b'{"op": "add"}', "add needs spec, a string"),
        (b'{"op": "cache", "port": 1, "on": 1}', "on is true or false, not 1"),
        (b'{"op": "limit", "port": 1, "mib": 0}', "mib is a number from 1 to 65535, not 0"),
        (b'{"op": "limit", "port": 1, "mib": NaN}', "mib is a number from 1 to 65535, not NaN"),
        (
            b'{"op": "resize", "port": 1, "cols": 80, "rows": 65536}',
            "rows is a number from 0 to 65535, not 65536",
        ),
        (b'{"op": "add", "spec": {"a": "' + b"x" * 99 + b'"}}', None),
    ],
)
def test_a_line_that_makes_no_sense_says_why(line: bytes, error: str | None) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        control.parse_request(line)
    assert error is None or str(caught.value) == error
    assert len(str(caught.value)) < 200


@given(st.binary() | st.from_regex(r'\{"op": ?"[a-z]+", "[a-z]+": .*\}').map(str.encode))
def test_no_line_has_another_outcome(line: bytes) -> None:
    try:
        request = control.parse_request(line)
    except RemoteProtocolError:
        return
    VALIDATOR.validate(json.loads(control.encode_request(request)))


def test_replies_are_read_back() -> None:
    assert control.parse_greeting(control.encode_greeting()) == control.VERSION
    assert control.parse_reply(control.encode_ports([{"id": 1}])) == [{"id": 1}]
    assert control.parse_reply(control.encode_error("no")) == "no"


@pytest.mark.parametrize(
    "line",
    [b"", b"220 mail.example.org ESMTP", b"{}", b'{"vconfs-control": true}', b"\xff\xfe", b"[]"],
)
def test_other_servers_are_known_by_their_greeting_or_reply(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        control.parse_greeting(line)
    with pytest.raises(RemoteProtocolError):
        control.parse_reply(line)


@pytest.mark.parametrize("ports", ["1", "[1]", "null"])
def test_a_reply_with_wrong_ports_is_refused(ports: str) -> None:
    with pytest.raises(RemoteProtocolError):
        control.parse_reply(f'{{"ok": true, "ports": {ports}}}'.encode())


# Lines


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_lines_come_out_as_they_went_in_however_they_are_cut(size: int) -> None:
    reader, data = LineReader(LINE_MAX), b"one\n\ntwo three\n  \nfour\r\nfive"
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert [line for piece in pieces for line in reader.feed(piece)] == [
        b"one",
        b"",
        b"two three",
        b"  ",
        b"four\r",
    ]
    assert list(reader.feed(b"\n")) == [b"five"]


def test_a_line_may_have_the_maximum_length_and_no_more() -> None:
    assert list(LineReader(LINE_MAX).feed(b"x" * LINE_MAX + b"\n")) == [b"x" * LINE_MAX]
    with pytest.raises(RemoteProtocolError, match=f"at most {LINE_MAX} bytes"):
        list(LineReader(LINE_MAX).feed(b"x" * (LINE_MAX + 1)))
    lines = LineReader(LINE_MAX).feed(b"first\n" + b"x" * LINE_MAX + b"x\nlast\n")
    assert next(lines) == b"first"
    with pytest.raises(RemoteProtocolError):
        next(lines)
