"""The site of docs/: how it is built, where its links lead, and what a browser shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from tests.support import needs

from .browser import PROGRAM, Browser, open_browser
from .shell import REPOSITORY

pytestmark = pytest.mark.skipif(not shutil.which("dot"), reason="needs graphviz")

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


def test_a_page_that_the_first_does_not_name_is_an_error(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    (docs / "howto/new.md").write_text("# New\n")
    done = build(docs, tmp_path / "html")
    assert done.returncode != 0
    assert done.stderr.startswith("docs/howto/new.md: docs/README.md does not name it\n")


def test_diagrams_are_drawn(site: Path) -> None:
    page = (site / "reference/files.html").read_text()
    assert "stateDiagram" not in page
    (drawn,) = re.findall(r'<svg[^>]*role="img".*?</svg>', page, re.DOTALL)
    words = {word.strip() for word in re.findall(r"<text[^>]*>(.*?)</text>", drawn)}
    assert {"no host", "host connected, throttles", "port removed", "THROTTLE 1"} < words


#: What makes a browser load something.
LOADING = re.compile(
    r"""<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)="?(https?:|//)"""
    r"""|url\(\s*["']?(https?:|//)|@import\s|\bimport\s*\(|\bfrom\s*["']https?:"""
)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    kinds = {".html", ".css", ".js", ".svg"}
    files = [file for file in site.rglob("*") if file.suffix in kinds]
    assert {file.suffix for file in files} == kinds
    for file in files:
        assert not (found := LOADING.search(file.read_text())), f"{file}: {found}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    needs.big_program(PROGRAM)
    with open_browser(tmp_path) as browser:
        yield browser


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_browser_shows_it_and_finds_words(browser: Browser, address: str, width: int) -> None:
    browser.resize(width, 900)
    browser.open(address)
    assert browser.run("document.title").startswith("vconfs")
    picture = "document.querySelector('img[src$=\"terminal.svg\"]')"
    browser.until(f"{picture}.complete && {picture}.naturalWidth > 0")
    assert browser.run(f"{picture}.getBoundingClientRect().top") < 900
    assert browser.run("document.documentElement.scrollWidth") == width
    browser.open(f"{address}search.html?q=throttling")
    browser.until("document.querySelectorAll('ul.search li a').length > 2")
    browser.until("document.querySelector('.search-summary').innerText.includes('found')")
    assert browser.run("document.querySelector('ul.search').innerText.includes('shell')")
    away = [url for url in browser.requested if not url.startswith((address, "data:"))]
    assert (away, browser.complaints) == ([], [])
