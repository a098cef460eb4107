"""Writes the seed corpus anew: `python -m tests.fuzz.record`. It needs /dev/fuse, and QEMU.

Most inputs are recorded from conversations of our own two ends; the rest is what users write.
Files in the corpus that have other names, like those of mended crashes, stay.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import trio
import trio.testing

from tests.faults.conversation import converse
from tests.support.devices import DEVICES
from tests.support.threads import in_thread
from vconfs.fuse._kernel_protocol import Opcode
from vconfs.guest.port import Opener
from vconfs.guest.ports import PortManager
from vconfs.host.control_socket import serve_control
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.host.spec import parse_port
from vconfs.mounting import Plan, open_mount
from vconfs.protocol import control, v8, virtio1
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.ivshmem import MESSAGE
from vconfs.protocol.vhost_user import Message, Parser
from vconfs.system.tasks import open_background
from vconfs.testing import Puppet, open_ends

from .requests import as_input
from .target import CORPUS, with_length

# See tests/conftest.py: otherwise a program that we start waits for a mount that we serve.
subprocess._USE_VFORK = False  # type: ignore[misc]

_FILES = {
    "device_url": [
        "embedded",
        "kernel",
        "pci:0000:00:05.0,resize=rows-first",
        "qtest:/tmp/dir,addr=04.0",
        "stream:unix:/run/vcon.sock,window=4096",
        "stream:tcp:[::1]:4555",
        "stream:vsock:3:1024",
        "stream:tty:/dev/ttyS1,baud=115200,window=2048",
        "stream:exec:ssh host vconfs host --listen stream:stdio",
        "stream:stdio,window=65536",
        "vhost-user:/run/vcon.sock",
        "sockets:/run/vm-%g/[!a-c]?*.s[",
        "sockets:/run/%%[]x]*/%g",
    ],
    "listen_url": [
        "stream:unix:/run/vcon.sock",
        "stream:tcp::4555,window=1048576",
        "stream:vsock::1024",
        "vhost-user:/run/v.sock,max-ports=63,inband,require-seals,resize=rows-first",
    ],
    "port_spec": [
        "chat=unix:/run/chat.sock,id=3,console,cache,limit=4,host-limit=65536",
        "a=connect:/run/a",
        "b=tcp:[::1]:80,cache",
        "c=seqpacket:/run/c",
        "d=pty:/run/d",
        "e=pipe:/run/e",
        "f=file:/var/log/a,b",
        "g=exec:cat | tr a-z A-Z,limit=1M",
        "h=stdio",
        "i=echo",
        "=null",
        "j=zero",
    ],
    "mount_options": [
        "rw,nosuid,allow_other,wait,cache,exclusive,mode=0660,uid=0,gid=root",
        "throttle=enospc,limit=4M,drain=500ms,tty=org.*,log=/var/log/v,tty=b",
        "x-systemd.automount,noauto,throttle=",
    ],
    "times": ["10s", "500ms", "2m", "0", "block", "enospc", "1.5s", "999999999m"],
    "shown_text": ["plain", "\x1b]0;title\x07\x9b31m", "\u202eabc\n\t\u00a0", "\udcff\udc80"],
    "file_names": ["org.libvirt.channel.0", "../vcon0", "a/b%2Fc\0", ".", "..", "vcon12", "hvc0"],
}
_RULES = """[[port]]
name = "org.example.*"
mode = "0660"
limit = "4M"
throttle = "block"

[[port]]
id = 0
tty = false
uid = 0
exclusive = true
"""
_CONFIG = """device = "stream:unix:/run/vcon.sock"
options = "wait,mode=0660"
port = ["chat=unix:/run/chat.sock", "log=file:/var/log/guest"]
once = true
"""


def keep(target: str, name: str, data: bytes) -> None:
    """Store an input."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


# --- what people write --------------------------------------------------------------------


def write_texts() -> None:
    for name, texts in _FILES.items():
        for number, text in enumerate(texts):
            keep(name, f"example-{number}", os.fsencode(text))
    keep("rules", "example-0", with_length(b"org.example.chat") + b"\0" + _RULES.encode())
    keep("config_file", "example-0", _CONFIG.encode())
    paths = ((1, b"mnt/a b", b"embedded"), (0, b"proc", b"tmpfs"), (1, b"\xe2\x82\xac\\x", b"x y"))
    lines = (bytes([ours]) + with_length(at) + with_length(what) for ours, at, what in paths)
    keep("mount_table_lines", "example-0", b"".join(lines))
    messages = [(0, 0), (0, 5), (1, -1), (1, 5), (1, 5), (1, 6), (1, 6), (0, 6)]
    words = (bytes([fd]) + MESSAGE.pack(value) for fd, value in messages)
    keep("ivshmem_messages", "doorbells", b"".join(words))


def write_rings() -> None:
    """Buffers go to the device and back, in each form; the numbers are those of the steps."""
    offer, parts, table = (
        bytes([0, 8, 65]),
        bytes([1, 3, 1, 5, 6, 7, 0]),
        bytes([1, 3, 2, 5, 6, 7, 1]),
    )
    there, back = bytes([2, 4, 5, 0, 3, 0, 6]), bytes([3, 7, 0, 7, 1])
    for name, bits in (("plain", 3), ("event-idx", 7), ("small", 0)):
        for kind, buffer in (("one-part", offer), ("chain", parts), ("indirect", table)):
            keep("virtqueue", f"{name}-{kind}", bytes([bits]) + (buffer + there + back) * 3)
    keep("virtqueue", "wrapping", bytes([15, 254, 255]) + (offer + parts + there + back) * 3)
    used = bytes([0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 1, 1, 0, 3, 8, 2])
    keep("virtqueue_receiving", "one-back", bytes([3]) + used)
    keep(
        "guest_rings", "there-and-back", bytes([0, 2, 1, 5, 104, 101, 108, 108, 111, 0, 1, 0, 1, 1])
    )
    keep("guest_rings", "received", bytes([1, 0, 0, 200, 1, 0, 4, 0, 0, 0, 9, 5, 0, 4, 0]))
    keep("host_rings", "sent", bytes([0, 0, 1, 0, 16, 60, 2, 1, 1, 1]))
    keep("host_rings", "received", bytes([1, 0, 0, 0, 16, 60, 3, 0, 5, 1, 2, 3, 4, 5, 1, 0, 2, 0]))


# --- both ends in one process -------------------------------------------------------------


@asynccontextmanager
async def _until_all_quiet() -> AsyncIterator[None]:
    yield
    await trio.testing.wait_all_tasks_blocked(0.02)


async def _use(host: Host, manager: PortManager, puppets: Sequence[Puppet]) -> None:
    """Let both ends say all that they can say."""
    opener = Opener(1)
    port = manager.ports[0]
    async with _until_all_quiet():
        port.open(opener)
    async with _until_all_quiet():
        await port.write(b"from the guest")
        puppets[0].port.send_nowait(b"from the host")
    port.read_nowait(100, opener)
    async with _until_all_quiet():
        host.rename(0, b"renamed")
        host.configure(0, cache=True, limit=2)
        host.resize(0, 80, 25)
        host.throttle(0, True)
        await host.add(HostPortSpec(b"added", Puppet(), console=True))
    async with _until_all_quiet():
        host.throttle(0, False)
        puppets[1].port.disconnect()
        host.remove(max(host.ports))
        port.close(opener)


def _specs() -> tuple[list[Puppet], list[HostPortSpec]]:
    puppets = [Puppet(), Puppet()]
    return puppets, [
        HostPortSpec(b"org.example.port%d" % port_id, puppet, console=not port_id)
        for port_id, puppet in enumerate(puppets)
    ]


@contextmanager
def _noting(kind: type, method: str, note: Callable[..., None]) -> Iterator[None]:
    """Pass the arguments of each call of a method to `note`."""
    original = getattr(kind, method)

    def noted(self: Any, *arguments: Any) -> Any:
        note(self, *arguments)
        return original(self, *arguments)

    with mock.patch.object(kind, method, noted):
        yield


async def record_dialects() -> None:
    for name, module in (("v8", v8), ("virtio1", virtio1)):
        heard: dict[type, bytearray] = {module.GuestEnd: bytearray(), module.HostEnd: bytearray()}
        plain: dict[type, bytearray] = {module.GuestEnd: bytearray(), module.HostEnd: bytearray()}

        def note(
            end: Any,
            queue: int,
            buffer: memoryview,
            heard: dict[type, bytearray] = heard,
            plain: dict[type, bytearray] = plain,
        ) -> None:
            piece = with_length(bytes(buffer), 2)
            heard[type(end)] += bytes([queue]) + piece
            plain[type(end)] += bytes([0, queue // 2]) + piece

        puppets, specs = _specs()
        with (
            _noting(module.GuestEnd, "receive", note),
            _noting(module.HostEnd, "receive", note),
        ):
            async with open_ends(specs, dialect=name) as ends:
                await trio.testing.wait_all_tasks_blocked(0.02)
                await _use(ends.host, ends.manager, puppets)
        config = module.HostEnd(module.FEATURES).config(2, 80, 25)
        setting = bytes([0xFF]) + with_length(config, 2)
        extra = b"\0" if name == "virtio1" else b""
        keep(f"{name}_guest", "conversation", b"\7" + extra + setting + heard[module.GuestEnd])
        keep(f"{name}_host", "conversation", b"\7" + extra * 2 + heard[module.HostEnd])
        bits = bytes([2 | (name == "virtio1")])
        keep("guest_end", name, bits + config[:8] + plain[module.GuestEnd])
        keep("host_end", name, bits + plain[module.HostEnd])


async def record_vhost_user(folder: Path) -> None:
    said: dict[int, list[Message]] = {}
    parsers: list[Parser] = []  # keeps their ids apart
    original = Parser.next_message

    def note(parser: Parser) -> Message | None:
        message = original(parser)
        if message is not None:
            parsers.append(parser)
            said.setdefault(id(parser), []).append(message)
        return message

    puppets, specs = _specs()
    manager = PortManager()
    with mock.patch.object(Parser, "next_message", note):
        async with open_host(specs) as host, DEVICES["vhost-user"](host, manager, folder):
            await trio.testing.wait_all_tasks_blocked(0.02)
            await _use(host, manager, puppets)
    for messages in said.values():
        data = b"".join(_as_bytes(message) for message in messages)
        if messages[0].flags & 4:
            requests = [message.request for message in messages]
            asked = bytes(_INDEX_OF.get(request, 0) for request in reversed(requests))
            keep("vhost_user_frontend", "replies", b"\0" + with_length(asked) + b"\1" + data)
        elif messages[0].request == vu.BackendRequest.CONFIG_CHANGE_MSG:
            keep("vhost_user_frontend", "channel", b"\1\0\1" + data)
        else:
            keep("vhost_user_backend", "conversation", b"\0" + data)
            order = bytes(_INDEX_OF.get(message.request, 1) for message in messages)
            keep("vhost_user_both", "conversation", order)
    answer = vu.Channel()
    answer.protocol_features = vu.PF_BACKEND_REQ | vu.PF_REPLY_ACK | vu.PF_INBAND_NOTIFICATIONS
    answers = [(4, 0), (5, 0), (2, 0)] * 3
    words = (
        b"\0" + request.to_bytes(4, "little") + b"\5\0\0\0\10\0\0\0" + value.to_bytes(8, "little")
        for request, value in answers
    )
    keep("vhost_user_channel", "answers", b"".join(words))


#: Requests in the order of `vhost_user._REQUESTS`.
_INDEX_OF = {
    request: index
    for index, request in enumerate((3, 1, 2, 15, 16, 17, 5, 36, 8, 9, 11, 12, 24, 25))
}


def _as_bytes(message: Message) -> bytes:
    head = (message.request, message.flags, len(message.payload))
    words = b"".join(number.to_bytes(4, "little") for number in head)
    return bytes([len(message.fds)]) + words + message.payload


async def record_streams(folder: Path) -> None:
    for name, options, bits in (("conversation", "", 3), ("small-window", ",window=4096", 2)):
        place = folder / name
        place.mkdir()
        talk = await converse(place, options)
        keep("stream_host", name, bytes([bits]) + bytes(talk.up))
        keep("stream_guest", name, bytes([bits]) + bytes(talk.down))
    noise = b"[    0.1] Linux version\r\n"
    keep("stream_guest", "after-noise", bytes([7]) + noise + bytes(talk.down))


async def record_control(folder: Path) -> None:
    requests: list[control.Request] = [
        control.List(),
        control.Add("chat=echo,id=5,console"),
        control.Rename("chat", "talk\udcff"),
        control.Limit(5, 4),
        control.Cache(5, True),
        control.Throttle("port", True),
        control.Resize(5, 80, 25),
        control.Disconnect(5),
        control.Remove(7),
        control.Remove(5),
        control.List(guest="web1"),
        control.GuestList(),
        control.GuestAdd("web1"),
    ]
    lines = [control.encode_request(request) for request in requests]
    heard = b""
    async with open_host([parse_port("port=null")]) as host, open_background() as nursery:
        await nursery.start(serve_control, host, f"{folder}/control")
        async with await trio.open_unix_socket(f"{folder}/control") as client:
            await client.send_all(b"".join(lines) + b"{not json\n")
            while heard.count(b"\n") < len(lines) + 2:
                heard += await client.receive_some()
    keep("control_requests", "conversation", b"".join(lines))
    for number, line in enumerate(lines):
        keep("control_requests", f"request-{number}", line)
    keep("control_replies", "conversation", heard)


async def record_fuse(folder: Path) -> None:
    packets: list[bytes] = []
    original = os.readv

    def note(device: int, buffers: Sequence[bytearray]) -> int:
        size = original(device, buffers)
        packets.append(bytes(buffers[0][:size]))
        return size

    puppets, specs = _specs()
    place = folder / "mnt"
    place.mkdir()
    with mock.patch.object(os, "readv", note):
        async with open_ends(specs) as ends, open_mount(Plan(place), ends.manager):
            await trio.testing.wait_all_tasks_blocked(0.02)
            for name, use in (("looks", _look), ("traffic", _transfer), ("refused", _try_all)):
                packets.clear()
                await in_thread(lambda use=use: use(place, puppets))  # type: ignore[misc]
                known = [packet for packet in packets if packet[4] != Opcode.INIT]
                keep("fuse_requests", name, b"".join(map(as_input, known))[:6000])


def _shell(place: Path, command: str) -> None:
    subprocess.run(["bash", "-c", command], env={"D": str(place), "PATH": "/usr/bin:/bin"})


def _look(place: Path, puppets: Sequence[Puppet]) -> None:
    _shell(place, "ls -la $D $D/by-name; stat -L $D/by-name/*; getfattr -d $D/vcon0; df $D")


def _transfer(place: Path, puppets: Sequence[Puppet]) -> None:
    file = os.open(place / "vcon0", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(file, b"hello, host\n")
        _shell(
            place,
            'python3 -c \'import os, select; f = os.open(os.environ["D"] + "/vcon1", 2);'
            ' p = select.poll(); p.register(f); p.poll(0); os.write(f, b"x"); p.poll(0)\'',
        )
        with_nothing = b""
        try:
            with_nothing = os.read(file, 4096)
        except BlockingIOError:
            assert not with_nothing
    finally:
        os.close(file)


def _try_all(place: Path, puppets: Sequence[Puppet]) -> None:
    _shell(
        place,
        "cd $D; touch x vcon0; rm vcon0; mkdir d; mv vcon0 y; ln vcon0 z; ln -s a b;"
        " chmod 777 vcon0; chown 1:1 vcon0; setfattr -n user.x -v y vcon0; mkfifo f;"
        " truncate -s 0 vcon0; sync vcon0;",
    )


# --- QEMU ---------------------------------------------------------------------------------


def record_qemu() -> None:
    """Keep what a real console's PCI function looks like, and QEMU's own lines."""
    address = 0x8000_2000
    read = [f"outl 0xcf8 {address + at:#x}\ninl 0xcfc\n" for at in range(0, 256, 4)]
    sized = [
        f"outl 0xcf8 {address + 0x10 + 4 * bar:#x}\noutl 0xcfc 0xffffffff\ninl 0xcfc\n"
        for bar in range(6)
    ]
    commands = "".join(read + sized) + "irq_intercept_in ioapic\nreadl 0x1000\nbad\n"
    lines = _ask_qemu(commands)
    values = [
        int(line.split()[1], 0) for line in lines if len(line.split()) == 2 and line[0] == "O"
    ]
    config = b"".join(value.to_bytes(4, "little") for value in values[:64])
    masks = values[64:70]
    bars = b"".join(
        low.to_bytes(4, "little") + (masks[i + 1] if i < 5 else 0).to_bytes(4, "little")
        for i, low in enumerate(masks)
    )
    keep("pci_function", "qemu-console", config + bars + b"\1\0" + (1 << 32).to_bytes(8, "little"))
    text = "\n".join(lines[:6] + lines[-4:]) + "\nIRQ raise 20\nIRQ lower 20\nERR what\n"
    keep("qtest_lines", "qemu", text.encode())


def _ask_qemu(commands: str) -> list[str]:
    """Return QEMU's answers to lines of qtest."""
    console = "virtio-serial-pci,disable-legacy=on,addr=4"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-display", "none"]
    command += ["-machine", "q35", "-nic", "none", "-device", console]
    command += ["-qtest", "stdio", "-qtest-log", "none"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as qemu:
        assert qemu.stdin is not None and qemu.stdout is not None
        qemu.stdin.write(commands)
        qemu.stdin.flush()
        lines = [qemu.stdout.readline().rstrip() for _ in commands.splitlines()]
        qemu.kill()
    return lines


async def main() -> None:
    write_texts()
    write_rings()
    record_qemu()
    with TemporaryDirectory() as place:
        folder = Path(place)
        await record_dialects()
        await record_vhost_user(folder)
        await record_streams(folder)
        await record_control(folder)
        await record_fuse(folder)


if __name__ == "__main__":
    trio.run(main)
