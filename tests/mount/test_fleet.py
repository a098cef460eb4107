"""A host end with several guests: its file of options, its guests' mounts, and `vconfs ctl`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from .test_commands import VCONFS, folder, vconfs

__all__ = ["folder"]

SCHEMA = json.loads(files("vconfs.protocol").joinpath("control.schema.json").read_text())


@contextmanager
def host(*words: str, listeners: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """Run a host end that listens at this many addresses, and end it in order."""
    command = ["env", "--default-signal", *VCONFS, "host", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            for _ in range(listeners):
                line = process.stderr.readline()
                assert line.startswith(b"vconfs: listening on "), line
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert b"Traceback" not in process.stderr.read()
        finally:
            process.kill()


@contextmanager
def mounted(device: str, name: str, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    vconfs("mount", "--device", device, "--name", name, str(at))
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True, timeout=10)


def guests(ctl: str) -> dict[str, Any]:
    """The guests by name, as `guest list --json` prints them."""
    validator = Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/guest"})
    found = [json.loads(it) for it in vconfs("ctl", ctl, "guest", "list", "--json").splitlines()]
    for guest in found:
        validator.validate(guest)
    return {guest["name"]: guest for guest in found}


def ports(ctl: str, *words: str) -> list[tuple[str, str]]:
    """The names of the guest and of the port, of each port."""
    validator = Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/port"})
    found = [json.loads(it) for it in vconfs("ctl", ctl, "list", "--json", *words).splitlines()]
    for port in found:
        validator.validate(port)
    return [(port["guest_name"], port["name"]) for port in found]


def test_guests_of_a_file_of_options(tmp_path: Path) -> None:
    run, ctl = tmp_path / "run", f"{tmp_path}/ctl"
    config = tmp_path / "hosts.toml"
    config.write_text(
        f"""
        listen = ["stream:unix:{tmp_path}/any,guest=*", "stream:unix:{tmp_path}/db,guest=db1"]
        control = "{ctl}"

        [template]
        port = ["org.example.agent=unix:{run}/%g/agent,cache", "log=file:{tmp_path}/%g.log"]

        [[guest]]
        name = "db1"
        listen = "vhost-user:{tmp_path}/%g.sock"
        port = "echo=echo"
        """
    )
    anywhere = f"stream:unix:{tmp_path}/any"
    with host("--config", str(config), listeners=3):
        with (
            mounted(anywhere, "web1", tmp_path / "web1"),
            mounted(anywhere, "web2", tmp_path / "web2"),
        ):
            for name in ("web1", "web2"):
                log = tmp_path / name / "by-name" / "log"
                log.write_text(name)
                (tmp_path / name / "by-name" / "org.example.agent").write_text(f"I am {name}")
                with socket.socket(socket.AF_UNIX) as agent:
                    agent.settimeout(10)
                    agent.connect(f"{run}/{name}/agent")
                    assert agent.recv(100) == f"I am {name}".encode()
            assert {name: it["connected"] for name, it in guests(ctl).items()} == {
                "db1": False,
                "web1": True,
                "web2": True,
            }
            (tmp_path / "other").mkdir()
            other = str(tmp_path / "other")
            error = vconfs("mount", "--device", anywhere, "--name", "web1", other, code=1)
            assert error == "guest 'web1' is connected already"
        at = tmp_path / "db1"
        at.mkdir()
        vconfs("mount", "--device", f"vhost-user:{tmp_path}/db1.sock", str(at))
        assert os.getxattr(at / "vcon0", "name") == b"echo"
        vconfs("umount", str(at))
        with mounted(f"stream:unix:{tmp_path}/db", "any-name", at):
            assert os.getxattr(at / "vcon0", "name") == b"echo"
    assert (tmp_path / "web1.log").read_text() == "web1"
    assert (tmp_path / "web2.log").read_text() == "web2"
    assert not run.exists()


def test_a_mount_without_a_name_says_that_of_its_machine(folder: Path, tmp_path: Path) -> None:
    ctl, any_guest = f"{tmp_path}/ctl", f"stream:unix:{tmp_path}/any"
    with host("--listen", f"{any_guest},guest=*", "--port", "a=null", "--control", ctl):
        vconfs("mount", "--device", any_guest, str(folder))
        assert list(guests(ctl)) == [os.uname().nodename]


def test_ctl_of_several_guests(tmp_path: Path) -> None:
    ctl = f"{tmp_path}/ctl"
    words = (
        *(
            "--listen",
            f"stream:unix:{tmp_path}/any,guest=*",
            "--listen",
            f"stream:unix:{tmp_path}/db1.sock",
        ),
        *("--port", f"agent=unix:{tmp_path}/%g/agent", "--control", ctl),
    )
    with host(*words, listeners=2):
        assert vconfs("ctl", ctl, "guest", "add", "web1") == ""
        assert (tmp_path / "web1" / "agent").is_socket()
        assert ports(ctl) == [("db1", "agent"), ("web1", "agent")]
        assert ports(ctl, "--guest", "web1") == [("web1", "agent")]
        assert vconfs("ctl", ctl, "add", "--guest", "web1", "log=null") == "1\n"
        assert ports(ctl, "--guest", "web1") == [("web1", "agent"), ("web1", "log")]
        assert "OF GUEST" in vconfs("ctl", ctl, "list")
        table = vconfs("ctl", ctl, "guest", "list")
        assert [line.split()[0] for line in table.splitlines()] == ["GUEST", "db1", "web1"]
        why = vconfs("ctl", ctl, "remove", "agent", code=1)
        assert why == "there are 2 guests: say which one with --guest"
        assert "there is no guest 'x'" in vconfs("ctl", ctl, "list", "--guest", "x", code=1)
        assert "already" in vconfs("ctl", ctl, "guest", "add", "web1", code=1)
        assert "cannot be the name" in vconfs("ctl", ctl, "guest", "add", "../x", code=1)
        vconfs("ctl", ctl, "guest", "remove", "web1")
        assert not (tmp_path / "web1").exists()
        assert vconfs("ctl", ctl, "remove", "agent") == ""
        assert ports(ctl) == []


def test_one_guest_is_named_after_its_listener(tmp_path: Path) -> None:
    ctl = f"{tmp_path}/ctl"
    words = ("--listen", f"stream:unix:{tmp_path}/vcon.sock", "--control", ctl)
    with host(*words, "--port", "%g=null"):
        assert ports(ctl) == [("vcon", "%g")]
        assert list(guests(ctl)) == ["vcon"]
        assert "OF GUEST" not in vconfs("ctl", ctl, "list")
        why = vconfs("ctl", ctl, "guest", "add", "web1", code=1)
        assert why == "there is no [template] for more guests"


def test_the_control_socket_of_a_mount_has_one_guest(folder: Path, tmp_path: Path) -> None:
    ctl = f"{tmp_path}/ctl"
    vconfs("mount", "--port", "echo=echo", "--control", ctl, str(folder))
    assert guests(ctl)[""]["ports"] == 1
    why = vconfs("ctl", ctl, "guest", "add", "web1", code=1)
    assert why == "this host end is in the process of its only guest"


def test_the_second_mount_is_told_that_the_host_end_is_busy(folder: Path, tmp_path: Path) -> None:
    device = f"stream:unix:{tmp_path}/s"
    with host("--listen", device, "--port", "echo=echo"):
        vconfs("mount", "--device", device, str(folder))
        other = tmp_path / "other"
        other.mkdir()
        error = vconfs("mount", "--device", device, str(other), code=1)
        assert error == "the host end serves another guest"
        vconfs("umount", str(folder))
        vconfs("mount", "--device", device, str(folder))


@pytest.mark.parametrize(
    ("toml", "error"),
    [
        ('[[guest]]\nlisten = "stream:stdio"', "1: a guest needs a name"),
        ('[[guest]]\nname = "a/b"', "1: 'a/b' cannot be the name of a guest"),
        ('[[guest]]\nname = "a"\nports = []', "1: ports: unknown key: the keys are name, listen,"),
        ('[[guest]]\nname = "a"\n[[guest]]\nname = "a"', "3: there are two guests 'a'"),
        ('[template]\nport = "x=what"', "1: unknown chardev 'what'"),
        ("[template]\nguests-max = 0", "1: guests-max is a number from 1"),
        ('[template]\ndialect = "v9"', "1: dialect is v8 or virtio1, not 'v9'"),
        ("template = 1", "1: template is a table"),
        ("guest = 1", "1: guests are tables"),
        ('[[guest]]\nname = "a"', "no guest could connect: a listen is missing"),
        ('listen = "stream:unix:/x"\n[template]', "say which guest it is for"),
        ('listen = "stream:unix:/x,guest=b"\n[template]', "there is no [[guest]] 'b'"),
        ('port = "a=null"\n[template]', "the ports of guests are in their tables"),
    ],
)
def test_wrong_files_of_guests(tmp_path: Path, toml: str, error: str) -> None:
    config = tmp_path / "hosts.toml"
    config.write_text(toml)
    assert error in vconfs("host", "--config", str(config), code=2)


def test_listeners_of_the_same_guest_have_to_say_so(tmp_path: Path) -> None:
    one, two = f"stream:unix:{tmp_path}/a/s.sock", f"vhost-user:{tmp_path}/s.sock"
    error = vconfs("host", "--listen", one, "--listen", two, code=2)
    assert "would both be for guest 's': add ,guest=NAME" in error


def test_a_mount_has_a_name_only_where_it_is_said(folder: Path) -> None:
    assert "--name" in vconfs("mount", "--name", "web1", str(folder), code=2)
    words = ("--name", "a/b", "--device", "stream:unix:/x", str(folder))
    assert "cannot be the name of a guest" in vconfs("mount", *words, code=2)
    words = ("--name", "web1", "--device", "vhost-user:/x", str(folder))
    assert "it is for stream" in vconfs("mount", *words, code=2)
