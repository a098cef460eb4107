"""Addresses of TCP ports: HOST:PORT."""

from __future__ import annotations


def tcp_address(argument: str) -> tuple[str, int]:
    """Return the host and the port in `argument`. Without a host it is localhost.

    An IPv6 address is in brackets. Raise ValueError if the argument is wrong.
    """
    host, colon, service = argument.rpartition(":")
    if not colon or "\0" in host or not _is_port(service):
        raise ValueError(f"tcp needs a host and a port: tcp:HOST:PORT, not {argument!r}")
    return host.removeprefix("[").removesuffix("]") or "localhost", int(service)


def bracketed(host: str) -> str:
    """Return a host as it is written before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535
