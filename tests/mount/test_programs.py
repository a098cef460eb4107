"""Ordinary programs on a port: each one that fuse.md says works, and shell idioms."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from .conftest import OpenMount

#: A port on which a host has said three lines and gone: what is read ends.
LINES = "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("cat $P", LINES),
        ("cat < $P", LINES),
        ("dd if=$P bs=5 status=none", LINES),
        ("head -c 3 $P", "one"),
        ("grep tw $P", "two\n"),
        ("wc -l < $P", "3\n"),
        ("sed -n 2p $P", "two\n"),
        ("sort $P", "one\nthree\ntwo\n"),
        ("tee copy.txt < $P > /dev/null 2>&1; echo $?", "1\n"),  # nobody creates files here
        ("cp $P $TMP/copy && cat $TMP/copy", LINES),
        ("install -m 600 $P $TMP/copy && cat $TMP/copy", LINES),
        ("tee $TMP/copy < $P > /dev/null; cat $TMP/copy", LINES),
        ("read -r a < $P; echo $a", "one\n"),
        ('while read -r line; do echo "<$line>"; done < $P', "<one>\n<two>\n<three>\n"),
        ('echo "$(<$P)"', LINES),
        ("mapfile -t lines < $P; echo ${#lines[@]}", "3\n"),
        ("exec 3<$P; read -r a <&3; read -r b <&3; echo $b", "two\n"),
        ("socat -u OPEN:$P -", LINES),
        ("perl -ne 'print uc' $P", LINES.upper()),
        ("perl -e 'open F, \"<\", $ENV{P}; print scalar <F>'", "one\n"),
        ('python3 -c \'import os; print(open(os.environ["P"]).read(), end="")\'', LINES),
        (
            'python3 -c \'import os, shutil; shutil.copyfile(os.environ["P"], '
            'os.environ["TMP"] + "/copy")\' && cat $TMP/copy',
            LINES,
        ),
        ("node -e 'process.stdout.write(require(\"fs\").readFileSync(process.env.P))'", LINES),
    ],
)
async def test_reading_to_the_end(
    mounted: OpenMount, tmp_path: Path, command: str, output: str
) -> None:
    if command.startswith("node") and not shutil.which("node"):
        pytest.skip("this machine has no node")
    async with mounted(f"port=unix:{tmp_path}/sock") as it:
        host = await trio.open_unix_socket(f"{tmp_path}/sock")
        await host.send_all(LINES.encode())
        await host.aclose()
        await it.until(lambda: it.port().queued and not it.port().host_connected)
        assert await it.run(f"TMP={tmp_path}; export TMP; {command}") == output


@pytest.mark.parametrize(
    ("command", "sent"),
    [
        ("echo hello > $P", "hello\n"),
        ("echo hello >> $P", "hello\n"),
        ("echo hello | cat > $P", "hello\n"),
        ("echo hello | tee $P > /dev/null", "hello\n"),
        ("echo hello | tee -a $P > /dev/null", "hello\n"),
        ("printf hello | dd of=$P bs=2 status=none", "hello"),
        ("printf hello | dd of=$P conv=notrunc status=none", "hello"),
        ("echo hello > $TMP/f; cp $TMP/f $P", "hello\n"),
        ("echo hello > $TMP/f; cat $TMP/f - < /dev/null > $P", "hello\n"),
        ("exec 3<>$P; echo one >&3; echo two >&3", "one\ntwo\n"),
        ("exec 3>$P; (echo child >&3); echo parent >&3", "child\nparent\n"),
        ("echo hello | socat -u - OPEN:$P", "hello\n"),
        ('perl -e \'open F, ">", $ENV{P}; print F "hello"\'', "hello"),
        ('perl -e \'open F, "+<", $ENV{P}; syswrite F, "hello"\'', "hello"),
        ('python3 -c \'import os; open(os.environ["P"], "w").write("hello")\'', "hello"),
        (
            'python3 -c \'import os; open(os.environ["P"], "r+b", buffering=0).write(b"hello")\'',
            "hello",
        ),
        ('node -e \'require("fs").writeFileSync(process.env.P, "hello")\'', "hello"),
        ("yes | head -c 300000 > $P", "y\n" * 150_000),
    ],
)
async def test_writing(mounted: OpenMount, tmp_path: Path, command: str, sent: str) -> None:
    if command.startswith("node") and not shutil.which("node"):
        pytest.skip("this machine has no node")
    async with mounted(f"port=unix:{tmp_path}/sock,cache") as it:
        assert await it.run(f"TMP={tmp_path}; export TMP; {command}") == ""
        host = await trio.open_unix_socket(f"{tmp_path}/sock")
        got = b""
        while len(got) < len(sent):
            got += await host.receive_some()
        assert got.decode() == sent
        await host.aclose()


async def test_asking_and_answering_on_one_descriptor(mounted: OpenMount) -> None:
    async with mounted('port=exec:while read -r a; do echo "$a?"; done') as it:
        command = "exec 3<>$P; for i in 1 2 3; do echo $i >&3; read -r a <&3; echo $a; done"
        assert await it.run(command) == "1?\n2?\n3?\n"


async def test_python_in_raw_mode_both_ways(mounted: OpenMount) -> None:
    async with mounted() as it:
        script = 'f = open("vcon0", "r+b", buffering=0); f.write(b"ab"); print(f.read(2))'
        assert await it.run(f"python3 -c '{script}'") == "b'ab'\n"


async def test_socat_joins_two_ports(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted("a=echo", f"b=unix:{tmp_path}/sock") as it, trio.open_nursery() as nursery:
        host = await trio.open_unix_socket(f"{tmp_path}/sock")
        nursery.start_soon(it.run, "timeout 10 socat OPEN:vcon0,rdwr OPEN:vcon1,rdwr")
        await it.until(lambda: it.port(0).openers and it.port(1).openers)
        await host.send_all(b"round and round")
        assert await host.receive_some() == b"round and round"
        await host.aclose()
