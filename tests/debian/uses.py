"""What people do with ports, between a guest and its host."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen

from tests.debian.guest import AGENT, CLIPBOARD, CONSOLE, EXAMPLES, MOUNTPOINT, WHO, Guest, until
from tests.debian.image import PASSWORD, ROOT, USER
from tests.support.remote.client import Remote

#: Links by name, as udev keeps them for the kernel's ports.
LINKS = "/dev/vcon"


@frozen
class Setup:
    """What an administrator has changed in a guest before it boots."""

    files: dict[str, str]
    #: Units, and what wants each of them.
    enabled: dict[str, str]


def example(name: str) -> str:
    return (ROOT / "examples" / name).read_text()


#: Links by name.
LINKS_FILES = {
    "/usr/local/libexec/udev-links.sh": example("udev-links.sh"),
    "/etc/systemd/system/udev-links.service": example("udev-links.service"),
}


@define
class Terminal:
    """What a person at the host sees of a console, and types."""

    _stream: trio.SocketStream
    _seen: str = field(init=False, default="")

    async def see(self, pattern: str, seconds: float = 60) -> str:
        """Wait for some text, and return all up to it."""
        with trio.move_on_after(seconds):
            while not (found := re.search(pattern, self._seen)):
                data = await self._stream.receive_some()
                assert data, f"the console is gone; seen: {self._seen!r}"
                self._seen += data.decode(errors="replace")
            before, self._seen = self._seen[: found.end()], self._seen[found.end() :]
            return before
        raise AssertionError(f"{pattern!r} was not seen, but {self._seen!r}")

    async def type(self, text: str) -> None:
        await self._stream.send_all(text.encode())


async def a_login_is_seen_by_the_host(guest: Guest, remote: Remote, tty: str) -> None:
    """Log in at the console, while the host is told who is logged in."""
    port = f"{MOUNTPOINT}/by-name/{WHO}"
    async with await guest.connect(WHO) as who, await guest.connect(CONSOLE) as console:
        users, terminal = Terminal(who), Terminal(console)
        await remote.run(f"systemd-run --unit=who {EXAMPLES}/who.sh {port}")
        try:
            assert (await users.see("\n")).strip() == ""
            await terminal.type("\n")
            await terminal.see("login: ")
            await terminal.type(f"{USER}\n")
            await terminal.see("Password: ")
            await terminal.type(f"{PASSWORD}\n")
            await terminal.see(rf"{USER}@\S+\$ ")
            await terminal.type("tty; id -un\n")
            assert re.search(rf"{tty}\r\n{USER}\r\n", await terminal.see(rf"\n{USER}\r\n"))
            assert (await users.see("\n")).strip() == USER
            await terminal.type("exit\n")
            await terminal.see("login: ")
            assert (await users.see("\n")).strip() == ""
        finally:
            await remote.run("systemctl stop who")


async def the_agent_answers(guest: Guest, remote: Remote) -> None:
    """QEMU's own agent runs on a port of the mount; hosts come and go."""
    port = f"{MOUNTPOINT}/by-name/{AGENT}"
    await remote.run(f"systemd-run --unit=agent {EXAMPLES}/guest-agent.sh {port}")
    try:
        for _ in range(3):
            async with await guest.connect(AGENT) as host:
                terminal = Terminal(host)
                await terminal.type('{"execute": "guest-ping"}\n')
                assert json.loads(await terminal.see("\n")) == {"return": {}}
    finally:
        await remote.run("systemctl stop agent")


@asynccontextmanager
async def _clipboard_of_the_host(guest: Guest, folder: Path, file: Path) -> AsyncIterator[None]:
    """Run the example at the host's side; its two fifos lead to the port."""
    for name in ("in", "out"):
        os.mkfifo(folder / name)
    ways = f"OPEN:{folder}/out,rdonly!!OPEN:{folder}/in,wronly"
    script = str(ROOT / "examples/clipboard.sh")
    environment = {**os.environ, "CLIPBOARD": str(file)}
    words = [str(folder / "in"), str(folder / "out")]
    port = f"UNIX-CONNECT:{guest.folder / CLIPBOARD}"
    async with program(script, *words, env=environment), program("socat", port, ways):
        yield


@asynccontextmanager
async def program(*words: str, env: dict[str, str] | None = None) -> AsyncIterator[None]:
    """Run a program at the host's side; terminate it at the end."""
    process = await trio.lowlevel.open_process([*words], env=env)
    try:
        yield
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(10):
                await process.wait()
            process.kill()
            await process.wait()


async def the_clipboard_is_shared(guest: Guest, remote: Remote, folder: Path) -> None:
    """What is copied at one end can be pasted at the other."""
    file, there = folder / "clipboard", "/root/clipboard"
    file.touch()
    port = f"{MOUNTPOINT}/by-name/{CLIPBOARD}"
    run = f"systemd-run --unit=clipboard --setenv=CLIPBOARD={there}"
    await remote.run(f"{run} {EXAMPLES}/clipboard.sh {port}")
    try:
        async with _clipboard_of_the_host(guest, folder, file):
            await until(remote, "pgrep -x inotifywait")
            await remote.run(f"echo 'from the guest' >{there}")
            with trio.fail_after(60):
                while file.read_text() != "from the guest\n":
                    await trio.sleep(0.1)
            file.write_text("from the host\n")
            await until(remote, f"grep -x 'from the host' {there}")
    finally:
        await remote.try_to_run("systemctl stop clipboard")  # it may have ended with its host


async def links_lead_to_the_ports(remote: Remote) -> None:
    """Each port has its link by name, and can be used by it."""
    await remote.exists_until(f"{LINKS}/{WHO}")
    for name in (AGENT, CLIPBOARD, WHO):
        target = await remote.readlink(f"{LINKS}/{name}")
        assert (await remote.getxattr(target, "user.name")).decode() == name


#: Matches what the journal has of our daemons and units.
_OURS = [
    *("_COMM=vconfs", "_COMM=mount.fuse.vcon", "SYSLOG_IDENTIFIER=vconfs"),
    *("UNIT=vconfs@vcon.service", "UNIT=vconfs@late.service"),
    *("UNIT=mnt-vcon.mount", "UNIT=udev-links.service", "UNIT=console-login.service"),
]
_WARNINGS = ["-b", "-q", "-p", "warning", "--no-pager", *" + ".join(_OURS).split()]
#: systemd says so when a mount of fstab is restarted: umount(8) does not wait for the daemon.
_LEFT_OVER = re.compile("Found left-over process|This usually indicates unclean termination")
#: Seconds of the guest that its end may take.
_END_SECONDS = 10.0
_MARK = "the test asks for the end"


async def the_journal_has_no_warning(remote: Remote) -> None:
    warnings = (await remote.run(f"journalctl {' '.join(_WARNINGS)}")).splitlines()
    ours = [line for line in warnings if not _LEFT_OVER.search(line)]
    assert ours == [], "\n".join(ours)


async def the_end_is_quick(guest: Guest) -> None:
    """Neither systemd nor the journal have anything to say of us when the guest ends."""
    async with guest.open_remote() as remote:
        await remote.run(f"logger {_MARK}")
    seen = len(guest.console)
    await guest.power_off()
    assert "stop job is running" not in guest.console[seen:]
    lines = guest.journal("-b", "-o", "short-monotonic").splitlines()
    times = [float(found[1]) for line in lines if (found := re.match(r"\[ *([0-9.]+)\]", line))]
    begun = next(it for it, line in zip(times, lines, strict=True) if line.endswith(_MARK))
    busy = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    took = times[-1] - begun
    print(f"the guest took {took:.1f} s of its own time to end, on a machine {busy:.1f} times busy")
    assert took < _END_SECONDS * busy
    ours = guest.journal(*_WARNINGS, "-o", "short-monotonic").splitlines()
    late = [line for line in ours if float(line.strip("[").split("]")[0]) > begun]
    assert late == [], "\n".join(late)
