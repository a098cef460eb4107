#!/usr/bin/env python3
"""Answers guests the time and the load of their host: a host end inside a program.

    host:   host-info.py stream:unix:/run/vcon.sock
    guest:  vconfs mount --device stream:unix:/run/vcon.sock /mnt/vcon
            exec 3<>/mnt/vcon/by-name/org.example.host-info
            echo load >&3; read -r answer <&3; echo "$answer"

Each line of a guest is a question, "time" or "load"; the answer is a line. The port is a trio
stream for each program that opens it, and is served like a socket.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

try:
    import trio

    from vconfs.host import (
        HostPortSpec,
        Listener,
        PortListener,
        PortStream,
        VconfsError,
        open_host,
        parse_listener,
    )
except ModuleNotFoundError as error:
    sys.exit(f"host-info.py: {error}: run it by the Python of an environment that has vconfs")

QUESTIONS: dict[bytes, Callable[[], str]] = {
    b"time": lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    b"load": lambda: " ".join(f"{load:.2f}" for load in os.getloadavg()),
}
#: A question that is longer is cut.
LONGEST = 100


async def answer(stream: PortStream) -> None:
    """Answer the questions of one guest program, until it closes the port."""
    question = b""
    try:
        async for data in stream:
            *lines, question = (question + data).split(b"\n")
            question = question[:LONGEST]
            for line in lines:
                reply = QUESTIONS.get(line.strip(), lambda: "ask for time or load")
                await stream.send_all(reply().encode() + b"\n")
    except trio.BrokenResourceError:
        pass  # it left without waiting for the answer


async def stop_on_signal(scope: trio.CancelScope) -> None:
    """End in order at SIGINT or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def serve(listener: Listener) -> str:
    """Serve one guest after the other. Report the reason if it ends without a signal."""
    port = PortListener()
    async with open_host([HostPortSpec(b"org.example.host-info", port)]) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, nursery.cancel_scope)
            nursery.start_soon(trio.serve_listeners, answer, [port])
            try:
                await listener.serve(host)
            except VconfsError as error:
                return str(error)
            finally:
                nursery.cancel_scope.cancel()
    return ""


def main() -> None:
    """Listen at the url on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: host-info.py LISTEN-URL")
    try:
        listener = parse_listener(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    sys.exit(trio.run(serve, listener) or 0)


if __name__ == "__main__":
    main()
