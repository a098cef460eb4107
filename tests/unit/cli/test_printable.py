"""Text for people has no characters that a terminal acts on."""

from __future__ import annotations

import logging
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vconfs.cli import ctl, doctor, ls, top, watch
from vconfs.cli._checks import Finding
from vconfs.cli._logs import set_log_format
from vconfs.cli._tables import print_table
from vconfs.syntax.printable import printable

#: Any text, and above all what terminals act on; lone surrogates too.
HOSTILE = st.text(
    st.one_of(
        st.sampled_from(
            "\x00\x07\x08\t\n\r\x1b\x7f\x85\x9b\x9d\u061c\u200e\u2028\u2029\u202e\u2066"
        ),
        st.characters(codec=None, categories=None),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("org.example.0 ü 名 🎛", "org.example.0 ü 名 🎛"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\tc\rd\x7f\x85", r"a\x0ab\x09c\x0dd\x7f\x85"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe\u2066\u200e", r"\u202egnp.exe\u2066\u200e"),
        ("\u2028\u2029\ufeff", r"\u2028\u2029\ufeff"),
        ("\ud800\udcff", r"\ud800\xff"),
        ("\U000e0041", r"\U000e0041"),
        (b"caf\xc3\xa9 \xff\x1b", r"café \xff\x1b"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


@given(HOSTILE)
def test_whatever_the_text_the_result_can_be_printed(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


def assert_printable(output: str) -> None:
    assert output.endswith("\n")
    for line in output[:-1].split("\n"):
        assert line.isprintable()


def port(name: str, openers: str) -> dict[str, object]:
    flags = dict.fromkeys(
        ("console", "host", "throttled", "guest_throttled", "throttled_by_hand"), True
    )
    numbers = dict.fromkeys(("queued", "bytes_in", "bytes_out", "dropped"), 7)
    texts = {"port": "vcon1", "name": name, "openers": openers, "chardev": name, "guest": "open"}
    return {"id": 1, "limit": 10, **flags, **numbers, **texts}


@given(name=HOSTILE, other=HOSTILE)
def test_every_table_and_line_is_printable(name: str, other: str) -> None:
    event = {"time": time.time(), "event": "add", "port": "vcon1", "name": name}
    assert watch._describe(event).isprintable()
    finding = doctor._describe(Finding("mount", "missing", f"{name} is mounted", other))
    assert_printable(click.unstyle(finding) + "\n")
    with redirect_stdout(StringIO()) as output:
        ls._print_table(
            [(Path(name), port(name, other)), (Path(name), {"port": name})], shows_mount=True
        )
        ctl._print_table([port(name, other)])
        print_table(top._table([port(name, other)], top._Rates(), shows_history=True))
    assert_printable(output.getvalue())


@given(name=HOSTILE)
def test_no_log_call_can_forge_a_line(name: str) -> None:
    handlers = logging.getLogger().handlers[:]
    try:
        set_log_format("text")
        formatter = logging.getLogger().handlers[0].formatter
    finally:
        logging.getLogger().handlers = handlers
    assert formatter is not None
    record = logging.LogRecord("vconfs", logging.WARNING, "", 0, "port %s", (name,), None)
    line = formatter.format(record)
    assert line.startswith("vconfs: port ")
    assert line.isprintable()
