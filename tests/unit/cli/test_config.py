"""Options from a file: what they become, and what is said of a wrong file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from vconfs.cli._config import config_option


@click.command
@config_option
@click.option("--device", default="embedded")
@click.option("--dialect", type=click.Choice(["v8", "virtio1"]))
@click.option("--once", is_flag=True)
@click.option("--port", "ports", multiple=True)
@click.option("-o", "--options", multiple=True)
@click.option("--secret", hidden=True)
@click.pass_context
def command(ctx: click.Context, /, **values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value}


def run(file: Path, *words: str) -> object:
    return command.main(["--config", str(file), *words], standalone_mode=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vconfs.toml"


def test_each_kind_of_option(file: Path) -> None:
    file.write_text(
        'device = "kernel"\ndialect = "v8"\nonce = true\noptions = "wait,cache"\n'
        'port = ["a=echo", "b=null"]\n'
    )
    assert run(file) == {
        "device": "kernel",
        "dialect": "v8",
        "once": True,
        "options": ("wait,cache",),
        "ports": ("a=echo", "b=null"),
    }


def test_the_command_line_wins(file: Path) -> None:
    file.write_text('device = "kernel"\nport = ["a=echo"]\n')
    assert run(file, "--device", "x", "--port", "c=zero") == {"device": "x", "ports": ("c=zero",)}
    assert run(file, "--once") == {"device": "kernel", "once": True, "ports": ("a=echo",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nprot = []", ":2: prot: unknown key: the keys are device, dialect, once, port, options"),
        ('\n\n[mount]\ndevice = "x"', ":3: mount: unknown key"),
        ('secret = "x"', ":1: secret: unknown key"),
        ('config = "x"', ":1: config: unknown key"),
        ('once = "yes"', ":1: once: once is true or false, not 'yes'"),
        ("device = 3", ":1: device: device is a text in quotes, not 3"),
        ('device = ["x"]', ":1: device: device is a text in quotes, not ['x']"),
        ("once = true\nport = [1]", ":2: port: port is a text or a list of texts in quotes"),
        ('# dialect\n"dialect" = "latin"', ":2: dialect: 'latin' is not one of 'v8', 'virtio1'"),
        ("port = [", ": Invalid value (at end of document)"),
    ],
)
def test_an_error_names_file_line_and_key(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(click.BadParameter) as wrong:
        run(file)
    assert wrong.value.message.startswith(f"{file}{message}")


def test_a_file_that_cannot_be_read(file: Path, tmp_path: Path) -> None:
    for path, message in ((file, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(click.BadParameter) as wrong:
            run(path)
        assert wrong.value.message == f"{path}: {message}"
    file.write_bytes(b"\xff")
    with pytest.raises(click.BadParameter, match="codec can't decode"):
        run(file)
