"""QEMU's qtest protocol: lines of text that read and write a machine's memory and ports.

    to QEMU     readl 0xe0000000 | writew 0xe0003000 0x5 | inl 0xcfc | outl 0xcf8 0x80002000
                irq_intercept_in ioapic
    from QEMU   OK | OK 0x1234 | FAIL why | ERR why      one for each command, in order
                IRQ raise 20 | IRQ lower 20              at any time

A command is answered after it has taken effect, and after the IRQ lines that it caused.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from attrs import frozen

from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError

#: The longest valid line, for a `LineReader`.
LINE_MAX: Final = 4096

_SUFFIX: Final = {1: "b", 2: "w", 4: "l", 8: "q"}


@frozen
class Answer:
    """The oldest command succeeded; `value` is what it read, or 0."""

    value: int


@frozen
class Refused:
    """The oldest command failed."""

    reason: str


@frozen
class Interrupt:
    """An interrupt line changed."""

    line: int
    raised: bool


QtestEvent: TypeAlias = Answer | Refused | Interrupt


def read(address: int, size: int) -> bytes:
    """Return the command that reads 1, 2, 4 or 8 bytes of memory."""
    return f"read{_suffix(size, 8)} {address:#x}\n".encode()


def write(address: int, size: int, value: int) -> bytes:
    """Return the command that writes 1, 2, 4 or 8 bytes of memory."""
    return f"write{_suffix(size, 8)} {address:#x} {value:#x}\n".encode()


def read_port(port: int, size: int) -> bytes:
    """Return the command that reads 1, 2 or 4 bytes of an I/O port."""
    return f"in{_suffix(size, 4)} {port:#x}\n".encode()


def write_port(port: int, size: int, value: int) -> bytes:
    """Return the command that writes 1, 2 or 4 bytes of an I/O port."""
    return f"out{_suffix(size, 4)} {port:#x} {value:#x}\n".encode()


def intercept_interrupts(controller: str) -> bytes:
    """Return the command that requests a line for each change of the controller's inputs."""
    return f"irq_intercept_in {controller}\n".encode()


def _suffix(size: int, largest: int) -> str:
    if size not in _SUFFIX or size > largest:
        raise LocalProtocolError(f"an access of {size} bytes")
    return _SUFFIX[size]


def parse_line(line: bytes) -> QtestEvent:
    """Parse a line of QEMU's, without its end. Raise RemoteProtocolError if it is wrong."""
    match line.split():
        case [b"OK"]:
            return Answer(0)
        case [b"OK", value]:
            return Answer(_number(value, line))
        case [b"FAIL" | b"ERR", *words]:
            return Refused(b" ".join(words)[:200].decode("ascii", "backslashreplace"))
        case [b"IRQ", b"raise", number]:
            return Interrupt(_number(number, line), True)
        case [b"IRQ", b"lower", number]:
            return Interrupt(_number(number, line), False)
    raise _bad(line)


def _number(word: bytes, line: bytes) -> int:
    try:
        value = int(word, 0)
    except ValueError:
        raise _bad(line) from None
    if not 0 <= value < 1 << 64:
        raise _bad(line)
    return value


def _bad(line: bytes) -> RemoteProtocolError:
    return RemoteProtocolError(f"not a line of qtest: {line[:60]!r}")
