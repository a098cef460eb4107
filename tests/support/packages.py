"""Packages: our own source for a build, and another one that adds a chardev."""

from __future__ import annotations

import shutil
from pathlib import Path
from textwrap import dedent

from vconfs.cli.manual import manual_pages

ROOT = Path(__file__).parents[2]
#: What pip installs below its prefix, beside the program.
BESIDE = {
    *(f"share/man/{page}" for page in manual_pages()),
    "share/bash-completion/completions/vconfs",
    "share/zsh/site-functions/_vconfs",
    "share/fish/vendor_completions.d/vconfs.fish",
    "lib/systemd/system/vconfs@.service",
    "lib/systemd/system/vconfs-host@.service",
}


def copy_source(folder: Path) -> None:
    """Copy the whole source to a new folder, where a build may leave files."""
    left_out = shutil.ignore_patterns(
        ".git", ".venv", ".*cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist"
    )
    shutil.copytree(ROOT, folder, ignore=left_out)


def make_package(folder: Path, code: str, *, name: str = "tiny-bus", kind: str = "bus") -> None:
    """Put a package there whose chardev KIND is the class Bus of the module TINY_BUS."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(dedent(code))
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[vconfs.chardevs]\n{kind} = {module}:Bus\n")


#: A message bus: every line of the guest goes to the topic, a file; what is in it, to the guest.
BUS = """
    import trio
    from vconfs.host import Chardev, VconfsError

    class Bus(Chardev):
        def __init__(self, topic):
            self.topic = topic

        @classmethod
        def parse(cls, argument):
            if not argument:
                raise ValueError("bus needs a topic: bus:TOPIC")
            return cls(argument)

        async def run(self, port, task_status=trio.TASK_STATUS_IGNORED):
            if self.topic == "nowhere":
                raise VconfsError("bus: there is no topic nowhere: choose another")
            port.connect()
            task_status.started()
            try:
                await port.send(b"welcome to " + self.topic.encode() + b"\\n")
                while True:
                    data = await port.receive()
                    if data == b"crash\\n":
                        raise KeyError("oh")
                    await port.send(data.upper())
            finally:
                port.disconnect()
"""
