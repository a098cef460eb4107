"""The rules that hold for every test: its limit, its log, and what the run reports."""

from __future__ import annotations

import pytest

from tests.support.limits import LONG, LimitPlugin
from tests.support.logs import LogPlugin
from tests.support.report import ReportPlugin


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers, and put the rules in force."""
    for line in (
        "limit(seconds): the test may take this long, whatever is usual in its folder",
        "long: the test is only for the long forms of VCONFS_LONG=1, as by make test-long",
        "expect_log(pattern, ...): the test makes vconfs log warnings like these",
    ):
        config.addinivalue_line("markers", line)
    for plugin in (LimitPlugin(), LogPlugin(), ReportPlugin()):
        config.pluginmanager.register(plugin)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that are only for the long forms."""
    if LONG:
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
