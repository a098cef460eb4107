"""Ordinary programs on a port: each one that fuse.md says works, and shell idioms."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from .conftest import OpenMount, program

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
        ("tee copy.txt < $P > /dev/null 2>&1; echo $?", "1\n"),  # files cannot be created here
        ("cp $P $TMP/copy && cat $TMP/copy", LINES),
        ("cp -a $P $TMP/copy && cat $TMP/copy", LINES),
        ("grep -r tw vcon0", "two\n"),
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


#: Programs that open each file of a tree, and read only as much as its size says: nothing.
OPENING = {
    "tar": "tar -cf $TMP/archive.tar .; tar -tf $TMP/archive.tar",
    "rsync": "rsync -av ./ $TMP/copy",
    "file": "find . -name 'vcon*' -exec file {} +",
    "a shell": "for file in vcon*; do : <$file; : >$file; : >>$file; : <>$file; echo $file; done",
    "dd": "for file in vcon*; do dd if=$file count=0 status=none; echo $file; done",
}


@pytest.mark.parametrize("command", OPENING.values(), ids=OPENING)
async def test_opening_and_closing_drops_nothing_and_starts_nothing(
    mounted: OpenMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    if command.startswith("rsync") and not shutil.which("rsync"):
        pytest.skip("this machine has no rsync")
    monkeypatch.setattr(
        "vconfs.guest.idle_opens.IDLE_SECONDS", 3600
    )  # however slow this machine is
    started = tmp_path / "started"
    exec_ = f"program=exec:touch {started}; cat"
    async with mounted(f"port=unix:{tmp_path}/sock", exec_) as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await host.send_all(b"a question")
            await it.until(lambda: it.port().queued)
            assert "vcon1" in await it.run(f"TMP={tmp_path}; {command}")
            await it.until(lambda: not it.port(0).openers and not it.port(1).openers)
            assert (it.port().queued, it.port().counters.dropped) == (10, 0)
            assert not started.exists()
            assert not it.host.ports[0].guest_connected
            assert await it.run("head -c 10 $P") == "a question"
            assert it.port().counters.dropped == 0


async def test_the_host_is_told_of_a_port_that_stays_open_unused(mounted: OpenMount) -> None:
    async with mounted("port=exec:echo here you are") as it:
        async with program("bash", "-c", f"exec 3<{it.file()}; sleep infinity"):
            await it.until(lambda: it.port().queued)
            assert it.host.ports[0].guest_connected


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
