"""The site of docs/: it is built without a warning, and all its links lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from .shell import REPOSITORY

DOCS = REPOSITORY / "docs"


def build(docs: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(docs / "site/build.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    done = build(DOCS, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_in_the_menu_of_the_first(site: Path) -> None:
    menu = first(site)
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS).with_suffix(".html"))
        assert name == "README.html" or f'href="{name}"' in menu, name
    for part in ("Guides", "Reference", "Design"):
        assert f'<span class="caption-text">{part}</span>' in menu


def test_the_first_page_has_a_picture_of_its_commands(site: Path) -> None:
    (picture,) = re.findall(r'<img alt="The commands of this page, [^>]*src="([^"]*)"', first(site))
    assert "vconfs&#160;mount" in (site / picture).read_text()


def first(site: Path) -> str:
    return (site / "index.html").read_text()


def test_its_links_lead_somewhere(site: Path) -> None:
    checked = 0
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"]*)"', page.read_text()):
            url = urlsplit(link)
            if url.scheme or url.netloc or not url.path:
                continue
            assert (page.parent / unquote(url.path)).exists(), f"{page.relative_to(site)}: {link}"
            checked += 1
    assert checked > 500


def test_a_dead_link_is_an_error(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    with (docs / "howto/shell.md").open("a") as page:
        page.write("\n[nothing](agents.md#there-is-no-such-heading)\n")
    done = build(docs, tmp_path / "html")
    assert done.returncode != 0
    assert "there-is-no-such-heading" in done.stderr
