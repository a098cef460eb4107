"""Our Debian package: what is in it. That it was built says that lintian found no error."""

from __future__ import annotations

import subprocess

import pytest

from tests.debian import image
from tests.support import needs
from tests.support.packages import BESIDE

pytestmark = [pytest.mark.long, pytest.mark.limit(60)]

#: Where the package has what pip puts below a prefix.
MOVED = {
    "lib/systemd/system/": "lib/systemd/system/",
    "share/zsh/site-functions/": "usr/share/zsh/vendor-completions/",
    "share/": "usr/share/",
}


@pytest.fixture(scope="module")
def listed() -> str:
    needs.programs(*image.PROGRAMS)
    if problem := image.make():
        needs.cannot_run(problem)
    return subprocess.check_output(["dpkg-deb", "-c", image.package()], text=True)


@pytest.fixture(scope="module")
def names(listed: str) -> set[str]:
    return {line.split()[5].removeprefix("./").removesuffix(".gz") for line in listed.splitlines()}


def test_it_has_pages_completion_and_units(names: set[str]) -> None:
    for path in BESIDE:
        before = next(it for it in MOVED if path.startswith(it))
        assert MOVED[before] + path.removeprefix(before) in names


def test_it_has_the_commands_and_the_examples(listed: str, names: set[str]) -> None:
    for command in ("usr/bin/vconfs", "usr/sbin/mount.fuse.vconfs"):
        assert f"./{command} -> ../lib/vconfs/bin/vconfs\n" in listed
    examples = {path.name for path in (image.ROOT / "examples").iterdir() if path.is_file()}
    assert {f"usr/share/doc/vconfs/examples/{name}" for name in examples} <= names


def test_nothing_in_it_says_where_it_was_built(names: set[str]) -> None:
    assert not [name for name in names if name.endswith(("direct_url.json", "/pip", ".pyc"))]
