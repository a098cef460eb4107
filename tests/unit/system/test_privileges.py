"""Dropping privileges where the kernel or a filter of system calls refuses."""

from __future__ import annotations

import ctypes
import errno
import logging

import pytest

from vconfs.system import privileges


class Refusing:
    """A C library whose calls fail."""

    def refuse(self, *arguments: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    capget = capset = prctl = refuse


@pytest.fixture(autouse=True)
def _refused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(privileges, "_libc", Refusing())
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize(("user", "lines"), [(0, 2), (1000, 1)])
def test_what_cannot_be_dropped_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, user: int, lines: int
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    privileges.drop_privileges(may_gain=False)
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert (
        caplog.messages
        == [
            "cannot drop capabilities: Operation not permitted",
            "cannot drop the right to gain privileges: Operation not permitted",
        ][-lines:]
    )


def test_a_user_whose_programs_may_gain_privileges_drops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    privileges.drop_privileges(may_gain=True)
    assert caplog.messages == []
