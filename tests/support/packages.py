"""Another package, which adds a chardev, in a folder for Python's path."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent


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
