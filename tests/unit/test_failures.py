"""How a command that fails names what failed."""

from __future__ import annotations

import errno
import os

import pytest

from vconfs import cli


@pytest.mark.parametrize(
    ("code", "filename", "said"),
    [
        (errno.EMFILE, None, "no more files can be opened: Too many open files (see ulimit -n)"),
        (errno.ENOSPC, None, "standard output: No space left on device"),
        (errno.EACCES, "/a/file", "[Errno 13] Permission denied: '/a/file'"),
    ],
)
def test_an_error_names_its_cause(code: int, filename: str | None, said: str) -> None:
    assert cli._describe(OSError(code, os.strerror(code), filename)) == said
