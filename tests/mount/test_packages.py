"""The wheel and the sdist: what is in them, what their metadata says, and that the wheel runs."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

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
    assert [link for link in links_of(text) if not link.startswith("https:")] == []
    assert "`docs/design.md` explains the design" in text
    assert "a pty beside the port (`docs/howto/consoles.md`)" in text


def links_of(markdown: str) -> Iterator[str]:
    """Yield where the links and pictures of a page lead."""
    for block in MarkdownIt().parse(markdown):
        for token in block.children or ():
            if target := token.attrs.get("href", token.attrs.get("src")):
                yield str(target)


#: Ways to write a link and a picture, and what is left of them in the description.
LINKS = {
    "[a pty](docs/howto/consoles.md)": "a pty (`docs/howto/consoles.md`)",
    "[docs/](docs/README.md)": "`docs/README.md`",
    "[the limits](#limits)": "the limits",
    "[a site](https://example.org/#top)": "[a site](https://example.org/#top)",
    "one ![a terminal](docs/terminal.svg) two": "one  two",
    "![a terminal](https://example.org/x.svg)": "![a terminal](https://example.org/x.svg)",
    "one [![a terminal](docs/terminal.svg)](docs/README.md) two": "one  two",
    "one [![a terminal](docs/terminal.svg)](https://example.org/) two": "one  two",
}


def test_pictures_and_links_to_sections_are_not_dead_in_the_description(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy_source(source)
    (source / "README.md").write_text("# vconfs\n\n" + "\n\n".join(LINKS) + "\n")
    build = "import setuptools.build_meta as it; print(it.prepare_metadata_for_build_wheel('..'))"
    command = [sys.executable, "-W", "ignore", "-c", build]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    (path,) = tmp_path.glob("*.dist-info/METADATA")
    description = path.read_text().partition("\n\n")[2]
    assert not [link for link in links_of(description) if not link.startswith("https:")]
    assert description.strip().split("\n\n")[1:] == list(LINKS.values()), done.stdout


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
