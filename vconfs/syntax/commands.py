"""Shell commands as users write them: exec:COMMAND."""

from __future__ import annotations


def command_argument(argument: str) -> str:
    """Return `argument` as a command for sh -c. Raise ValueError if it cannot be one."""
    if not argument.strip():
        raise ValueError("exec needs a command: exec:COMMAND")
    if "\0" in argument:
        raise ValueError(f"exec: a command cannot contain a NUL: {argument!r}")
    return argument
