"""The rules that hold for every test, tried on tests that break them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import trio

from tests.support.booted import LINES, Booted
from tests.support.remote.client import WorkerEnded, open_local
from tests.support.waiting import block_until, until

ROOT = Path(__file__).parents[2]

TESTS = """
    import logging
    import threading

    import pytest
    import trio

    log = logging.getLogger("vconfs.some.module")

    @pytest.mark.limit(0.3)
    async def test_waits_for_ever():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a_task)

    async def a_task():
        await trio.sleep_forever()

    @pytest.fixture
    async def never():
        await trio.sleep_forever()
        yield

    @pytest.mark.limit(0.3)
    async def test_has_a_fixture_that_waits_for_ever(never):
        pass

    @pytest.mark.limit(0.3)
    def test_blocks_its_thread():
        threading.Event().wait()

    def test_warns():
        log.warning("the sky falls")

    @pytest.mark.expect_log("another thing")
    def test_warns_of_something_else():
        log.warning("the sky falls")

    @pytest.mark.expect_log("the sky")
    def test_warns_as_expected():
        log.warning("the sky falls")

    def test_looks_at_the_log_itself(caplog):
        log.warning("the sky falls")
        assert caplog.messages == ["the sky falls"]

    def test_is_skipped():
        pytest.skip("no reason")

    async def test_comes_after_them():
        await trio.sleep(0)
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of TESTS says where no test may be skipped."""
    file = tmp_path_factory.mktemp("tests") / "test_them.py"
    file.write_text(dedent(TESTS))
    config = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *config, "-p", "tests.support.plugin", str(file)],
        cwd=ROOT,
        env={**os.environ, "VCONFS_REQUIRE": "all"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def outcomes(output: str) -> Iterator[tuple[str, str]]:
    for line in output.splitlines():
        name, _, rest = line.partition("::test_")[2].partition(" ")
        if rest.startswith(("PASSED", "FAILED", "SKIPPED", "ERROR")):
            yield name, rest.split()[0]


@pytest.mark.limit(60)
def test_what_breaks_a_rule_fails_alone(output: str) -> None:
    assert dict(outcomes(output)) == {
        "waits_for_ever": "FAILED",
        "has_a_fixture_that_waits_for_ever": "FAILED",
        "blocks_its_thread": "FAILED",
        "warns": "FAILED",
        "warns_of_something_else": "FAILED",
        "warns_as_expected": "PASSED",
        "looks_at_the_log_itself": "PASSED",
        "is_skipped": "FAILED",
        "comes_after_them": "PASSED",
    }


def test_a_failure_says_where_it_waits_and_what_was_logged(output: str) -> None:
    assert output.count("the test took longer than") >= 3
    for line in ("async with trio.open_nursery() as nursery:", "threading.Event().wait()"):
        assert line in output
    assert "WARNING vconfs.some.module: the sky falls" in output


def test_a_run_ends_with_its_time_and_its_peers(output: str) -> None:
    assert "time by folder" in output
    assert "peers" in output
    assert "Linux: " in output


async def test_a_condition_that_never_holds_is_an_error() -> None:
    with pytest.raises(trio.TooSlowError):
        await until(lambda: False, 0.01)
    with pytest.raises(trio.TooSlowError):
        block_until(lambda: False, 0.01)


async def test_a_worker_that_ends_is_an_error_at_once() -> None:
    async with open_local() as remote:
        with trio.fail_after(30):
            await remote.leave(0)
            for _ in range(2):  # one may be sent before the worker ends, and one is sent after it
                with pytest.raises(WorkerEnded):
                    await remote.listdir("/")


def test_a_guest_shows_the_end_of_what_was_said(tmp_path: Path) -> None:
    guest = Booted(tmp_path)
    assert guest.said == "nothing was said"
    (tmp_path / "console.log").write_text("".join(f"{number}\n" for number in range(2 * LINES)))
    last = "\n".join(str(number) for number in range(LINES, 2 * LINES))
    assert guest.ends == {"the guest's console": last}
    assert guest.said == f"the end of the guest's console:\n{last}"
