"""Showing the records of a tap: as text, in hex, as lines of JSON, or in a pcapng file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any, Final

import click
from attrs import define, field, frozen
from click.shell_completion import CompletionItem

from vconfs.cli._arguments import File, proposals
from vconfs.errors import VconfsError
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.lines import LineReader
from vconfs.protocol.pcapng import Capture
from vconfs.protocol.tap import DATA_EVENTS, EVENTS, LINE_MAX, Record, encode, parse
from vconfs.syntax.printable import printable

#: Bytes in a line of hex.
_ROW: Final = 16


@frozen
class Filter:
    """What to show: these events, and of records with data those that match all patterns."""

    events: Collection[str]
    patterns: Collection[re.Pattern[bytes]]

    def passes(self, record: Record) -> bool:
        """True if a record is shown. One that says what is missing always is."""
        if record.event == "lost":
            return True
        if self.events and record.event not in self.events:
            return False
        if record.event not in DATA_EVENTS:
            return bool(self.events) or not self.patterns
        return all(pattern.search(record.data) for pattern in self.patterns)


def _parse_filter(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> Filter:
    events: list[str] = []
    patterns = []
    for word in words:
        if len(word) > 1 and word.startswith("/") and word.endswith("/"):
            try:
                patterns.append(re.compile(os.fsencode(word[1:-1]), re.DOTALL))
            except (re.error, OverflowError) as error:
                raise click.BadParameter(f"{word!r}: {error}", ctx, param) from None
            continue
        events += word.split(",")
        if unknown := sorted(set(events) - set(EVENTS)):
            known = ", ".join(EVENTS)
            raise click.BadParameter(
                f"{unknown[0]!r} is not /REGEX/, and not one of {known}", ctx, param
            )
    return Filter(events, patterns)


def _propose_events(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    return proposals(EVENTS, incomplete)


@frozen
class Style:
    """How a tap's records are shown. Raise click.UsageError if the options exclude each other."""

    as_json: bool
    as_hex: bool
    write: str | None
    filter: Filter
    limit: int | None

    def __attrs_post_init__(self) -> None:
        if self.as_json + self.as_hex + (self.write is not None) > 1:
            raise click.UsageError("choose one of --json, --hex and --write")


def style_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that make a `Style` to a command."""
    for option in reversed(
        (
            click.option(
                "--json", "as_json", is_flag=True, help="Print a line of JSON per record."
            ),
            click.option("-x", "--hex", "as_hex", is_flag=True, help="Show the data in hex, too."),
            click.option(
                "-w",
                "--write",
                type=File(allow_dash=True),
                metavar="FILE",
                help="Write a pcapng file for Wireshark instead; -: to standard output.",
            ),
            click.option(
                "-f",
                "--filter",
                multiple=True,
                callback=_parse_filter,
                shell_complete=_propose_events,
                metavar="EVENT,…|/REGEX/",
                help="Show only these events, or only data that matches.",
            ),
            click.option(
                "-n",
                "--limit",
                type=click.IntRange(1),
                metavar="N",
                help="End after N records.",
            ),
        )
    ):
        command = option(command)
    return command


def read_records(chunks: Iterable[bytes], source: str) -> Iterator[Record]:
    """Yield the records in the bytes of a tap. Raise VconfsError if they are none."""
    lines = LineReader(LINE_MAX)
    try:
        for chunk in chunks:
            yield from map(parse, lines.feed(chunk))
    except RemoteProtocolError as error:
        raise VconfsError(f"{source}: {error}: is its vconfs of another version?") from None


def show(records: Iterable[Record], style: Style) -> None:
    """Show records until there are no more, or as many as wanted."""
    left = style.limit
    with _output(style) as put:
        for record in records:
            if not style.filter.passes(record):
                continue
            put(record)
            if left is not None and record.event not in ("present", "lost"):
                left -= 1
                if not left:
                    return


@contextmanager
def _output(style: Style) -> Iterator[Callable[[Record], None]]:
    """Yield what shows a record."""
    if style.write is not None:
        with _opened(style.write) as file:
            capture = Capture()
            _write(file, capture.begin())
            yield lambda record: _write(file, capture.add(record))
    elif style.as_json:
        yield lambda record: _print(encode(record).decode().rstrip())
    else:
        yield _Text(style.as_hex).put


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file to write to without a buffer, which only we may read."""
    if path == "-":
        if sys.stdout.isatty():
            raise VconfsError("a terminal cannot show pcapng: name a file, or use a pipe")
        yield sys.stdout.buffer
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VconfsError(f"{path}: {error.strerror}") from None
    with open(descriptor, "wb", buffering=0) as file:
        yield file


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    file.flush()


def _print(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()


@define
class _Text:
    """Shows records in lines for people."""

    _as_hex: bool
    #: The length of the longest name so far.
    _width: int = field(init=False, default=0)

    def put(self, record: Record) -> None:
        """Print a record."""
        clock = datetime.fromtimestamp(record.time_ns / 1e9).strftime("%H:%M:%S.%f")
        name = printable(record.name or (b"tap" if record.id is None else b"vcon%d" % record.id))
        self._width = max(self._width, len(name))
        begin = f"{clock}  {name:<{self._width}}  "
        if record.event not in DATA_EVENTS:
            _print(begin + printable(record.summary))
            return
        if self._as_hex:
            _print(f"{begin}{record.event:<3}  {len(record.data)} bytes")
            rows = _rows_of_hex(record.data)
        else:
            first, *rows = _rows_of_text(record.data)
            _print(f"{begin}{record.event:<3}  {first}")
        indent = " " * (len(begin) + 5)
        if rows:
            _print("\n".join(indent + row for row in rows))


def _rows_of_text(data: bytes) -> list[str]:
    """Return a row for each line of the data; an end of line is shown as \\n."""
    *lines, rest = data.split(b"\n")
    rows = [printable(line) + "\\n" for line in lines]
    return [*rows, printable(rest)] if rest or not rows else rows


def _rows_of_hex(data: bytes) -> list[str]:
    """Return rows of an offset, up to 16 bytes in hex, and the same bytes as characters."""
    rows = []
    for start in range(0, len(data), _ROW):
        part = data[start : start + _ROW]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        rows.append(f"{start:04x}  {part.hex(' '):<{_ROW * 3}}{text}")
    return rows
