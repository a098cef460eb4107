"""The rules that hold for every test: its limit, its log, and what the run reports."""

from __future__ import annotations

import pytest

from tests.support.limits import LimitPlugin
from tests.support.logs import LogPlugin
from tests.support.report import ReportPlugin


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers, and put the rules in force."""
    for line in (
        "limit(seconds): the test may take this long, whatever is usual in its folder",
        "expect_log(pattern, ...): the test makes vconfs log warnings like these",
    ):
        config.addinivalue_line("markers", line)
    for plugin in (LimitPlugin(), LogPlugin(), ReportPlugin()):
        config.pluginmanager.register(plugin)
