"""Command lines that are wrong, or are not those of the manual, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from vconfs.cli import _logs, main
from vconfs.cli._options import parse_options
from vconfs.files.rules import parse_rules
from vconfs.guest.devices import parse_device
from vconfs.host import parse_chardev, parse_listener, parse_port
from vconfs.host.chardevs.files import File
from vconfs.host.chardevs.programs import Exec
from vconfs.streams._socket_addresses import UnixAddress
from vconfs.streams.url import parse_stream_address
from vconfs.syntax.sizes import parse_size
from vconfs.system.file_access import FileAccess
from vconfs.system.log_once import LineLimit

Run = Callable[..., tuple[object, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    # Alike lines of all tests of this process would have one limit.
    monkeypatch.setattr(_logs, "_LINE_LIMIT", LineLimit())

    def run(*words: str) -> tuple[object, str]:
        """Run a command; give its exit code and what it printed."""
        with pytest.raises(SystemExit) as ended:
            main(words)
        return ended.value.code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("command", ["mount", "umount", "top", "ls"])
def test_an_unset_variable_is_not_the_current_folder(run: Run, command: str) -> None:
    code, said = run(command, "")
    assert code == 2
    assert "it is empty: name a folder" in said


@pytest.mark.parametrize(
    "words",
    [
        ("mount", "--config", "", "/mnt"),
        ("mount", "-o", "config=", "/mnt"),
        ("mount", "--rules", "", "/mnt"),
        ("mount", "--log", "", "/mnt"),
        ("mount", "--control", "", "/mnt"),
        ("host", "--config", ""),
        ("tap", "--write", "", "/mnt"),
        ("ctl", ""),
        ("ctl", "", "list"),
    ],
)
def test_an_unset_variable_is_no_file(run: Run, words: tuple[str, ...]) -> None:
    code, said = run(*words)
    assert code == 2
    assert "it is empty: name a file" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("unmount /mnt", "there is no command 'unmount': did you mean 'umount'? (see vconfs"),
        ("mout /mnt", "there is no command 'mout': did you mean 'mount'? (see vconfs --help)"),
        ("list /mnt", "there is no command 'list'"),
        ("xyzzy", "there is no command 'xyzzy' (see vconfs --help)"),
    ],
)
def test_a_misspelt_command_is_not_a_device(run: Run, words: str, message: str) -> None:
    code, said = run(*words.split())
    assert code == 2
    assert message in said


@pytest.mark.parametrize("word", ["--help", "help", "-h"])
def test_help_is_a_command_as_well(run: Run, word: str) -> None:
    code, said = run(word)
    assert code == 0
    assert "Named ports between a virtual machine" in said


def test_help_of_a_command_can_be_asked_for_either_way(run: Run) -> None:
    assert run("help", "umount") == run("umount", "--help")


@pytest.mark.parametrize("word", ["version", "--version", "-V"])
def test_each_way_to_ask_for_the_version_works(run: Run, word: str) -> None:
    code, said = run(word)
    assert code == 0
    assert said.startswith("vconfs, version ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("g=file:/var/log/g,cahce", "unknown option of file: 'cahce': it is mode=MODE or owner="),
        ("g=file:/var/log/g,cahce", "host-limit=SIZE (a comma of the address is written twice)"),
        ("g=file:/a,", "unknown option of file: '': it is"),
        (
            "g=unix:/run/s,server=on,wait=off",
            "(leave it out: unix and tcp listen, connect connects)",
        ),
        ("g=unix:/run/s,wait=off", "(leave it out: nothing waits for the far side)"),
        ("g=connect:/run/s,reconnect=1", "(leave it out: connect tries again by itself)"),
        ("g=file,path=/var/log/g", "unknown option of file: 'path=/var/log/g'"),
        ("g=file,path=/var/log/g", "(write it after the colon: KIND:PATH)"),
        ("g=socket,path=/run/s", "unknown chardev 'socket': write unix:PATH or tcp:HOST:PORT"),
        ("g=socket:/run/s", "unknown chardev 'socket': write unix:PATH or tcp:HOST:PORT"),
        ("g=connect:/run/s,mode=0660", "unknown option of connect: 'mode=0660': it is id=N"),
        ("g=tcp:localhost:1,x=1", "unknown option of tcp: 'x=1'"),
        ("g=echo,cahce", "unknown option of echo: 'cahce'"),
        ("g=stdio,cahce", "unknown option of stdio: 'cahce'"),
        ("g=pipe:/p,mode=rw", "mode is three octal digits, like 0660, not 'rw'"),
        ("g=pty,group=nobody-has-this", "group is a number or a name that is known here"),
        ("g=unix:/s,mode=0600,mode=0660", "mode is given twice"),
        ("g=unix:/s,mode", "mode needs a value: mode=MODE"),
    ],
)
def test_a_misspelt_or_foreign_option_of_a_chardev_is_not_a_path(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_port(spec)


def test_options_of_the_chardev_and_of_the_port_stand_in_any_order() -> None:
    spec = parse_port("g=file:/a,,b,mode=0640,cache,group=0,id=7")
    assert spec.chardev == File("/a,b", FileAccess(0o640, group=0))
    assert (spec.id, spec.cache) == (7, True)
    assert parse_chardev(spec.chardev_text) == spec.chardev
    assert parse_port("g=file:/a,,,cache").chardev == File("/a,")


def test_a_command_keeps_its_commas() -> None:
    spec = parse_port("g=exec:tr a,b c,,d,cahce,cache")
    assert spec.chardev == Exec("tr a,b c,,d,cahce")
    assert spec.cache


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("stream:unix:/run/s,windwo=1", ""),
        ("stream:unix:/run/s,inband", ""),
        (
            "stream:unix:/run/s,,inband,window=64K",
            UnixAddress(path="/run/s,inband", window=1 << 16),
        ),
        ("vhost-user:/run/s,inbnad", ""),
    ],
)
def test_a_misspelt_option_of_a_url_is_not_a_path(url: str, address: object) -> None:
    if address:
        assert parse_stream_address(url.removeprefix("stream:")) == address
    else:
        for parse in (parse_device, parse_listener):
            with pytest.raises(ValueError, match=r"unknown option of (unix|vhost-user): "):
                parse(url)


SIZES = [("65536", 1 << 16), ("64K", 1 << 16), ("64k", 1 << 16), ("64KiB", 1 << 16)]
MORE_SIZES = [*SIZES, ("1M", 1 << 20), ("1048576", 1 << 20), ("1G", 1 << 30), ("1GB", 1 << 30)]


@pytest.mark.parametrize(("text", "size"), MORE_SIZES)
def test_one_unit_for_sizes_everywhere(text: str, size: int) -> None:
    assert parse_port(f"g=null,host-limit={text}").host_limit == size
    assert parse_options([f"limit={text}"]).port.limit == size
    [rule] = parse_rules(f'[[port]]\nid = 1\nlimit = "{text}"', "rules")
    assert rule.port["limit"] == size
    assert parse_size("window", text, 1, 1 << 30) == size
    if size >= 1 << 20:
        assert parse_port(f"g=null,limit={text}").limit == size >> 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "limit=4 would be 4 bytes: for 4 MiB write 4M"),
        ("1500K", "limit is a whole number of MiB, like 4M, not '1500K'"),
        ("64G", "limit is a size in bytes, or like 64K, 4M, 1G, from 1M to 65535M, not '64G'"),
        ("4T", "limit is a size in bytes, or like 64K, 4M, 1G, from 1M to"),
        ("4 M", "limit is a size"),
    ],
)
def test_a_number_of_mebibytes_without_a_unit_is_told_how_to_write_it(
    run: Run, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_port(f"g=null,limit={text}")
    code, said = run("ctl", "/run/no-socket", "limit", "1", text)
    assert code == 2
    assert message.removeprefix("limit") in " ".join(said.split())


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
@pytest.mark.parametrize("words", [("tap", "--help"), ("ls", "--help"), ("ctl", "add", "--help")])
def test_a_help_fits_the_terminal(
    run: Run, words: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, said = run(*words)
    usage, prose, *_, options = re.split(r"\n\n(?=  \w)|\nOptions:\n", said)
    lines = "\n".join((usage, prose, options)).splitlines()
    assert min(columns, 100) - 30 < max(map(len, lines)) <= min(columns, 100)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("sockets:run/*/*",), "sockets needs whole paths, from / on, not 'run/*/*'"),
        (("sockets:/run/*/*,x",), "unknown option of sockets: 'x'"),
        (("sockets:/run/*/*", "--once"), "can come again at any time"),
        (("sockets:/run/*/*", "--dialect", "v8"), "without a dialect"),
        (("sockets:/run/*/*", "--bind"), "only a PCI device can be bound"),
        (("sockets:/run/*/*", "--name", "me"), "the guests have the names of their folders"),
        (("sockets:/run/*/*", "--port", "a=echo"), "the ports are the sockets"),
        (("sockets:/run/*/*", "--control", "/x"), "which their hypervisors add and remove"),
        (("sockets:/run/*/*", "-o", "tty=*"), "there are no ptys beside the sockets"),
    ],
)
def test_what_a_mount_of_sockets_does_not_have_is_refused(
    run: Run, words: tuple[str, ...], error: str
) -> None:
    code, said = run("mount", "--device", *words, "/mnt")
    assert code == 2
    assert error in said
