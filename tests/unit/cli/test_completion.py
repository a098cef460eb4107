"""Proposals for the word before the cursor, in the form for bash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import get_completion_class

import vconfs.cli._completion  # noqa: F401  it has the class for bash
from vconfs.cli import _arguments as arguments
from vconfs.cli import vconfs as command
from vconfs.device import binding
from vconfs.protocol.control import GuestList, List, Request

CONSOLES = ["0000:00:05.0", "0000:00:06.0"]
#: Mountpoint -> the names of its ports.
MOUNTS = {"/mnt/a": ["org.a", "both", "two words"], "/mnt/b": ["org.b", "both", "bell\a"]}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two consoles and two mounts."""
    monkeypatch.setattr(binding, "candidates", lambda: CONSOLES)
    for name in ("_arguments.mounts", "_arguments.places", "watch.places", "tap.mounts"):
        monkeypatch.setattr(f"vconfs.cli.{name}", lambda: list(map(Path, MOUNTS)))
    for module in ("_arguments", "watch"):
        monkeypatch.setattr(f"vconfs.cli.{module}.port_names", lambda mount: MOUNTS[str(mount)])
    monkeypatch.setattr(arguments, "_port_files", lambda mount: ["vcon0"])


def proposed(line: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COMP_LINE", f"vconfs {line}")
    bash = get_completion_class("bash")
    assert bash is not None
    assert isinstance(command, click.Command)
    return bash(command, {}, "vconfs", "_VCONFS_COMPLETE").complete()


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("um", "plain,umount"),
        ("umount ", "plain,/mnt/a plain,/mnt/b"),
        ("umount /mnt/b", "plain,/mnt/b"),
        ("ls /h", "dir,"),
        ("mount /m", "dir,"),
        ("cat o", "plain,org.a plain,org.b"),
        ("tap --hex o", "plain,org.a plain,org.b"),
        ("tap /mnt/b/b", "plain,/mnt/b/both"),
        ("tap /mnt/b", "plain,/mnt/b plain,/mnt/b/org.b plain,/mnt/b/both plain,/mnt/b/vcon0"),
        ("tap --filter co", "plain,connect"),
        ("cat b", "file,"),  # two mounts have it: it names no port
        ("connect /mnt/b/b", "plain,/mnt/b/both"),
        ("cat /mnt/a/v", "plain,/mnt/a/vcon0"),
        ("cat ./x", "file,"),
        ("bind 0000:00:0", "plain,05.0 plain,06.0"),
        ("unbind ", "plain,0000:00:05.0 plain,0000:00:06.0"),
        ("mount --device k", "plain,kernel"),
        ("mount --device pci:0000:00:05", "plain,05.0"),
        ("mount --device=pci:0000:00:05", "plain,05.0"),
        ("mount --device=st", "part,stream:unix: part,stream:tcp: part,stream:vsock:"),
        ("mount --device stream:st", "plain,stdio"),
        ("host --listen stream:u", "part,unix:"),
        ("host --listen k", ""),
        ("mount --port chat", ""),
        ("mount --port chat=p", "part,pipe: plain,pty"),
        ("mount -o wait,thr", "part,wait,throttle="),
        ("mount -o wait,throttle=", "plain,enospc plain,block plain,10s"),
        ("mount -o throttle=b", "plain,block"),
        ("mount -o exc", "plain,exclusive"),
        ("mount -o wait,uid=roo", "plain,root"),
        ("mount -o gid=roo", "plain,root"),
        ("mount -o mode=06", "plain,0600 plain,0640 plain,0660 plain,0666"),
        ("mount -o limit=1", "plain,1M plain,16M"),
        ("mount -o log={here}/so", "plain,{here}/sock"),
        ("mount --port chat=unix:{here}/s", "part,{here}/so,,me/ plain,{here}/sock"),
        ("mount --port chat=file:{here}/so,,me/", "plain,{here}/so,,me/log"),
        ("mount --port chat=unix:/s,mo", "part,/s,mode="),
        ("mount --port chat=unix:/s,cache,c", "plain,/s,cache,console plain,/s,cache,cache"),
        ("mount --port chat=unix:/s,owner=roo", "plain,root"),
        ("mount --port chat=unix:/s,group=roo", "plain,root"),
        ("mount --port chat=echo,host", "part,echo,host-limit="),
        ("mount --port chat=echo,mo", ""),
        ("mount --port chat=nothing:/s,mo", ""),
        ("ctl /run/ctl add chat=unix:/s,mo", "part,/s,mode="),
        ("host --listen stream:unix:{here}/soc", "plain,{here}/sock"),
        ("host --listen vhost-user:/s,in", "plain,/s,inband"),
        ("mount --device vhost-user:/s,in", ""),
        ("mount --device pci:0000:00:05.0,re", "part,05.0,resize="),
        ("mount --device stream:unix:/s,wi", "part,/s,window="),
        ("mount --device stream:tty:/s,baud=11", "plain,115200"),
        ("mount --rules x", "file,"),
        ("mount --config x", "file,"),
        ("mount --dialect v", "plain,v8 plain,virtio1"),
        ("watch --until conn", "part,connect="),
        ("watch --until connect=org", "plain,org.a plain,org.b"),
    ],
)
def test_proposals(
    line: str, replies: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sock").touch()
    (tmp_path / "so,me").mkdir()
    (tmp_path / "so,me/log").touch()
    line, replies = (it.replace("{here}", str(tmp_path)) for it in (line, replies))
    found = " ".join(proposed(line, monkeypatch).splitlines())
    assert found == replies or (replies.endswith(":") and found.startswith(replies))


def test_a_word_may_have_spaces_but_nothing_that_moves_the_cursor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert proposed("cat two", monkeypatch) == "plain,two words"
    assert proposed("cat bell", monkeypatch) == "file,"


#: Guest -> the names of its ports.
GUESTS = {"web1": ["agent", "log"], "web2": ["agent", "backup"], "db1": []}


def of_several_guests(path: Path, request: Request) -> list[dict[str, Any]]:
    """Answer as a host end with several guests does."""
    if isinstance(request, GuestList):
        return [{"name": name} for name in GUESTS]
    assert isinstance(request, List)
    guests = list(GUESTS) if request.guest is None else [request.guest]
    return [{"name": name, "id": 0} for guest in guests for name in GUESTS[guest]]


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("ctl /run/ctl tap --guest w", "plain,web1 plain,web2"),
        ("ctl /run/ctl tap --guest=w", "plain,web1 plain,web2"),
        ("ctl /run/ctl tap --guest web2 ", "plain,agent plain,backup"),
        ("ctl /run/ctl tap a", "plain,agent"),
        ("ctl /run/ctl guest remove d", "plain,db1"),
        ("ctl /run/ctl tap --filter o", "plain,out plain,open"),
    ],
)
def test_guests_and_ports_of_a_host_end(
    line: str, replies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vconfs.cli.ctl.ask", of_several_guests)
    assert proposed(line, monkeypatch).split() == replies.split()
