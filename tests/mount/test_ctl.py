"""A host end by itself, a mount of it, and `vconfs ctl` between, as a person calls them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.pcapng_reader import packets
from tests.support.waiting import block_until

from .test_commands import VCONFS, folder, mounts, vconfs

__all__ = ["folder"]

SCHEMA = json.loads(files("vconfs.protocol").joinpath("control.schema.json").read_text())
PORT = Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/port"})


@pytest.fixture
def ctl(tmp_path: Path) -> Iterator[str]:
    """The control socket of a host end with a port, which listens on a unix stream."""
    path = tmp_path / "ctl"
    with subprocess.Popen(
        [
            *("env", "--default-signal", *VCONFS, "host", "--control", str(path)),
            *("--listen", f"stream:unix:{tmp_path}/device", "--port", "first=null"),
        ],
        stderr=subprocess.PIPE,
    ) as host:
        try:
            assert host.stderr is not None
            assert host.stderr.readline().startswith(b"vconfs: listening on stream:unix:")
            yield str(path)
            host.terminate()
            assert host.wait(10) == 0
            assert b"Traceback" not in host.stderr.read()
            assert not path.exists()
        finally:
            host.kill()


def objects(text: str) -> list[dict[str, Any]]:
    """The objects that --json printed."""
    ports = [json.loads(line) for line in text.splitlines()]
    for port in ports:
        PORT.validate(port)
    return ports


def test_ports_of_a_mount_are_changed_from_outside(ctl: str, folder: Path, tmp_path: Path) -> None:
    device = f"stream:unix:{tmp_path}/device"
    vconfs("mount", "--device", device, "-o", "throttle=100ms", str(folder))
    assert vconfs("ctl", ctl, "add", f"chat=unix:{tmp_path}/chat") == "1\n"
    chat = folder / "by-name" / "chat"
    block_until(chat.exists)
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(f"{tmp_path}/chat")
        block_until(lambda: os.getxattr(chat, "user.host") == b"1")
        with open(chat, "r+b", buffering=0) as port:
            client.sendall(b"hello")
            assert port.read(5) == b"hello"
            vconfs("ctl", ctl, "throttle", "chat", "on")
            block_until(lambda: os.getxattr(chat, "user.throttled") == b"1")
            with pytest.raises(OSError, match="No space left"):
                port.write(b"x")
            [state] = objects(vconfs("ctl", ctl, "throttle", "chat", "off", "--json"))
            assert (state["guest"], state["host"], state["throttled"]) == ("open", True, False)
            vconfs("ctl", ctl, "disconnect", "chat")
            assert client.recv(5) == b""
            assert port.read(5) == b""
    vconfs("ctl", ctl, "cache", "1", "on")
    vconfs("ctl", ctl, "limit", "1", "2M")
    vconfs("ctl", ctl, "resize", "0", "132", "43")
    vconfs("ctl", ctl, "rename", "1", "talk")
    talk = folder / "by-name" / "talk"
    block_until(talk.exists)
    block_until(lambda: os.getxattr(talk, "user.limit") == b"%d" % (2 << 20))
    assert os.getxattr(talk, "user.cache") == b"1"
    assert vconfs("ctl", ctl, "remove", "talk", "--json") == ""
    block_until(lambda: not talk.exists())
    vconfs("umount", str(folder))
    assert mounts(folder) == []


def test_a_file_is_opened_anew_by_a_disconnect(ctl: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    vconfs("ctl", ctl, "add", f"log=file:{log}")
    log.unlink()
    vconfs("ctl", ctl, "disconnect", "log")
    block_until(log.exists)


def test_list_is_a_table_or_lines_of_json(ctl: str) -> None:
    vconfs("ctl", ctl, "add", "con=pty,console,cache,limit=3M,host-limit=4096,id=7")
    first, con = objects(vconfs("ctl", ctl, "list", "--json"))
    assert (first["id"], first["name"], first["chardev"]) == (0, "first", "null")
    assert (con["id"], con["limit"], con["host_limit"], con["cache"]) == (7, 3, 4096, True)
    vconfs("ctl", ctl, "throttle", "first", "on")
    rows = [line.split() for line in vconfs("ctl", ctl, "list").splitlines()]
    assert rows == [
        ["ID", "NAME", "CHARDEV", "HOST", "GUEST", "STATE", "QUEUED", "IN", "OUT"],
        ["0", "first", "null", "connected", "-", "throttled", "by", "hand", "0", "0", "0"],
        ["7", "con", "pty", "-", "-", "console", "0", "0", "0"],
    ]


def test_list_shows_what_was_dropped(
    ctl: str, folder: Path, tmp_path: Path, unused_tcp_port: int
) -> None:
    vconfs("ctl", ctl, "add", f"chat=tcp:127.0.0.1:{unused_tcp_port}")
    vconfs("mount", "--device", f"stream:unix:{tmp_path}/device", str(folder))
    chat = folder / "by-name" / "chat"
    chat.write_bytes(b"12345")
    block_until(lambda: objects(vconfs("ctl", ctl, "list", "--json"))[1]["dropped"] == 5)
    head, first, second = (line.split() for line in vconfs("ctl", ctl, "list").splitlines())
    assert (head[-1], first[-1], second[-1]) == ("DROPPED", "0", "5")
    assert os.getxattr(chat, "user.dropped") == b"0"
    assert "user.host_dropped" not in os.listxattr(chat)  # which only its host knows
    vconfs("umount", str(folder))


def test_a_name_that_is_not_text_is_an_address_too(ctl: str) -> None:
    vconfs("ctl", ctl, "rename", "first", os.fsdecode(b"\xff\xe9"))
    assert "\\xff\\xe9" in vconfs("ctl", ctl, "list")
    vconfs("ctl", ctl, "rename", os.fsdecode(b"\xff\xe9"), "")
    assert objects(vconfs("ctl", ctl, "list", "--json"))[0]["name"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("remove", "7"), "there is no port 7"),
        (("remove", "chat"), "there is no port 'chat'"),
        (("add", "x=echo,id=0"), "port id 0 is taken by 'first'"),
        (("add", "x=bus:7"), "unknown chardev 'bus': it is one of connect, echo, "),
        (("add", "x"), "'x' is not NAME=CHARDEV, for example "),
        (("disconnect", "first"), "port 'first' has no client that could be hung up"),
    ],
)
def test_what_the_host_end_refuses_is_exit_code_1(
    ctl: str, words: tuple[str, ...], message: str
) -> None:
    assert vconfs("ctl", ctl, *words, code=1).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("throttle", "0", "maybe"), "'maybe' is not one of 'on', 'off'"),
        (("limit", "0", "0"), "from 1M to 65535M, not '0'"),
        (("resize", "0", "80", "x"), "'x' is not a valid integer"),
        (("explode",), "No such command 'explode'"),
        (("remove",), "Missing argument 'PORT'"),
    ],
)
def test_usage_errors_are_exit_code_2(words: tuple[str, ...], message: str) -> None:
    assert message in vconfs("ctl", "/nowhere", *words, code=2)


# What is at the other end of the path


def test_paths_where_no_host_end_answers(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        return vconfs("ctl", str(path), "list", code=1).removeprefix(str(path))

    assert said(tmp_path / "x").startswith(
        ": there is no such socket: start a host end with --control "
    )
    assert said(tmp_path) == ": this is not a socket"
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(tmp_path / "stale"))
    assert said(tmp_path / "stale").startswith(
        ": no program listens there: start a host end with --"
    )
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as packets:
        packets.bind(str(tmp_path / "packets"))
        packets.listen()
        assert said(tmp_path / "packets") == ": this is not a control socket of vconfs"


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (b"220 mail.example.org ESMTP\r\n", " is not a control socket of vconfs"),
        (b"", " is not a control socket of vconfs"),
        (b'{"vconfs-control": 2}\n', ": the host end speaks version 2 of the control protocol"),
        (b'{"vconfs-control": 1}\n', ": the host end has ended before it answered"),
        (b'{"vconfs-control": 1}\n{"ok": 1}\n', " is not a control socket of vconfs"),
    ],
)
def test_a_peer_with_another_greeting_gets_no_request(
    tmp_path: Path, greeting: bytes, message: str
) -> None:
    path = tmp_path / "other"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        with subprocess.Popen(
            [*VCONFS, "ctl", str(path), "list"], stderr=subprocess.PIPE, text=True
        ) as client:
            with closing(listener.accept()[0]) as sock:
                sock.sendall(greeting)
                sock.shutdown(socket.SHUT_WR)
                heard = sock.makefile("rb").read()
            _, said = client.communicate(timeout=10)
    assert client.returncode == 1
    assert said.startswith(f"vconfs: {path}{message}")
    assert bool(heard) == greeting.startswith(b'{"vconfs-control": 1}')


@pytest.mark.parametrize(
    "words",
    [
        "--control {}/ctl",
        "--port a=file:{}/vcon0",
        "--port a=unix:{}/s",
        "--port a=pty:{}/p,console",
    ],
)
def test_a_mount_makes_nothing_below_itself(folder: Path, words: str) -> None:
    said = vconfs("mount", *words.format(folder).split(), str(folder), code=1)
    assert f"this is in {folder}, the mount of this process" in said
    assert os.listdir(folder) == []


def test_a_port_at_a_path_in_the_mount_is_refused(folder: Path, tmp_path: Path) -> None:
    """The daemon would have to answer itself while it waits for the answer."""
    ctl = f"{tmp_path}/ctl"
    vconfs("mount", "--port", "a=echo", "--control", ctl, str(folder))
    (tmp_path / "link").symlink_to(folder)
    for chardev in (f"file:{folder}/vcon0", f"unix:{tmp_path}/link/s", f"pipe:{folder}/p"):
        said = vconfs("ctl", ctl, "add", f"b={chardev}", code=1)
        assert f"this is in {folder}, the mount of this process" in said
    assert sorted(path.name for path in folder.glob("vcon*")) == ["vcon0"]


def test_a_control_socket_that_cannot_be_made(tmp_path: Path) -> None:
    words = ("host", "--listen", f"stream:unix:{tmp_path}/device", "--control")
    assert "it is empty: name a file" in vconfs(*words, "", code=2)
    assert "has at most 107 bytes" in vconfs(*words, "/x" * 60, code=2)
    assert "the folder /no does not exist" in vconfs(*words, "/no/ctl", code=1)
    assert not (tmp_path / "device").exists()


def test_the_ports_of_a_host_end_are_completed(ctl: str) -> None:
    def proposed(line: str) -> str:
        return vconfs(_VCONFS_COMPLETE="bash_complete", COMP_LINE=f"vconfs {line}").strip()

    assert proposed(f"ctl {ctl} remove f") == "plain,first"
    assert proposed(f"ctl {ctl} throttle first o").split() == ["plain,on", "plain,off"]
    assert proposed(f"ctl {ctl} add x=ec") == "plain,echo"
    assert proposed("ctl /no/such/socket remove f") == ""


def test_a_tap_of_a_host_end_shows_what_the_guest_sends(
    ctl: str, folder: Path, tmp_path: Path
) -> None:
    vconfs("mount", "--device", f"stream:unix:{tmp_path}/device", str(folder))
    block_until((folder / "by-name" / "first").exists)
    capture = tmp_path / "capture"
    tap = [*VCONFS, "ctl", ctl, "tap"]
    with (
        subprocess.Popen([*tap, "--limit", "3", "first"], stdout=subprocess.PIPE) as shown,
        subprocess.Popen([*tap, "--limit", "3", "--write", str(capture)]) as written,
    ):
        try:
            assert shown.stdout is not None
            assert shown.stdout.readline().endswith(b"first  present, connected\n")
            block_until(lambda: capture.exists() and b"present" in capture.read_bytes())
            (folder / "by-name" / "first").write_bytes(b"hello")
            output = shown.stdout.read().decode()
            assert shown.wait(10) == written.wait(10) == 0
        finally:
            shown.kill()
            written.kill()
    assert [line[17:] for line in output.splitlines()] == [
        "first  open",
        "first  in   hello",
        "first  close",
    ]
    found = [
        (packet.port, packet.direction, packet.data) for packet in packets(capture.read_bytes())
    ]
    assert ("first", "in", b"hello") in found
    assert vconfs("ctl", ctl, "tap", "nothing", code=1) == "there is no port 'nothing'"


def test_a_tap_shows_ports_that_are_added(ctl: str) -> None:
    with subprocess.Popen([*VCONFS, "ctl", ctl, "tap"], stdout=subprocess.PIPE) as shown:
        try:
            assert shown.stdout is not None
            assert b"present" in shown.stdout.readline()
            vconfs("ctl", ctl, "add", "other=null")
            assert shown.stdout.readline().endswith(b"other  add\n")
        finally:
            shown.terminate()
