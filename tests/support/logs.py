"""A warning in the log that a test does not expect is a failure of that test."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator

import pytest

#: Fixtures by which a test sees the log.
_LOOKING = {"caplog", "capsys"}


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "vconfs.test":  # the tests' own
            self.records.append(record)


class LogPlugin:
    """Look at what vconfs logs in the process of the tests.

    A test expects what its markers `expect_log(PATTERN, …)` name. One that uses `caplog` or
    `capsys` looks at the log itself.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Let no test log by what another one has set up."""
        logger = logging.getLogger("vconfs")
        before = logger.handlers[:], logger.level, logger.propagate
        try:
            return (yield)
        finally:
            logger.handlers[:], logger.level, logger.propagate = before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        logger, warnings = logging.getLogger("vconfs"), _Warnings()
        logger.addHandler(warnings)
        try:
            result = yield
        finally:
            logger.removeHandler(warnings)
        if not _LOOKING & set(getattr(item, "fixturenames", ())):
            check(item, warnings.records)
        return result


def check(item: pytest.Item, records: list[logging.LogRecord]) -> None:
    """Fail a test that logged what it does not expect."""
    patterns = [re.compile(arg) for mark in item.iter_markers("expect_log") for arg in mark.args]
    lines = [f"{record.levelname} {record.name}: {record.getMessage()}" for record in records]
    # The count of lines that were left out before can come a minute later, in another test.
    patterns.append(re.compile("more lines like this one were left out"))
    unexpected = [line for line in lines if not any(one.search(line) for one in patterns)]
    if unexpected:
        pytest.fail("the log has what the test does not expect:\n" + "\n".join(unexpected), False)
