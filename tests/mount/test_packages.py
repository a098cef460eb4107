"""The wheel and the sdist: what is in them, what their metadata says, and that the wheel runs."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.support.packages import BESIDE, ROOT, copy_source


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both packages; the wheel is built from the sdist."""
    folder = tmp_path_factory.mktemp("packages")
    copy_source(folder / "source")
    words = "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")
    command = [sys.executable, *words, str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in (done.stdout + done.stderr).lower()
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (it for it in archive.namelist() if it.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_an_index_would_take_them(built: Path) -> None:
    words = "-m", "twine", "--no-color", "check", "--strict"
    command = [sys.executable, *words, *map(str, built.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2), done.stdout


def test_the_metadata_says_what_indexes_show(metadata: Message) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Author"] == "The vconfs authors"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "virtio-serial" in metadata["Keywords"].split(",")
    classifiers = metadata.get_all("Classifier", [])
    assert {"Framework :: Trio", "Operating System :: POSIX :: Linux"} < set(classifiers)
    assert not [it for it in classifiers if it.startswith("License ::")]


def test_the_description_has_no_dead_links(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert text.startswith("# vconfs\n")
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == []
    assert "`docs/design.md` explains the design" in text
    assert "a pty beside the port (`docs/howto/consoles.md`)" in text


def test_the_wheel_has_pages_completion_and_units(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    beside = {name.partition(".data/data/")[2] for name in names} - {""}
    assert beside == BESIDE
    assert {"vconfs/py.typed", "vconfs/protocol/control.schema.json"} < names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"vconfs"}


def test_the_sdist_has_docs_tests_and_examples(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("docs", "tests", "examples", "scripts", "share", "systemd", "benchmarks"):
        files = (it for it in (ROOT / folder).rglob("*") if it.is_file())
        wanted = {str(it.relative_to(ROOT)) for it in files if "__pycache__" not in it.parts}
        assert wanted - names == set()
    assert {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "SECURITY.md"} < names


@pytest.mark.long
def test_the_wheel_runs_where_nothing_else_is(wheel: Path, tmp_path: Path) -> None:
    """In an empty virtual environment, with the dependencies that pip finds for it."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([environment / "bin/pip", "install", "-q", wheel], check=True)
    assert not [name for name in BESIDE if not (environment / name).is_file()]
    path = f"{environment}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    variables = {"PATH": path, "HOME": str(tmp_path), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
    done = subprocess.run(["vconfs", "demo"], env=variables, capture_output=True, text=True)
    assert "That was all; nothing is left mounted." in done.stdout, done.stderr
