"""The book: built from stored outputs without a network, no broken link, nothing loaded from elsewhere, and a search
that works where it is opened from a disk. What tests in a notebook is one line in its chapter."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from lab import FLAGS, chromium, missing
from mkdocs.exceptions import PluginError
from notebooks import ROOT, notebooks

needs_browser = pytest.mark.skipif(bool(missing()), reason=missing())


class Links(HTMLParser):
    "What a page links to and loads, and the ids that can be linked to."

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given[k] for k in ("id", "name") if given.get(k)}
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loads.append(given["href"])
        elif tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    "The book, built as `make site` builds it, in a folder of its own."
    folder, demo = tmp_path_factory.mktemp("book") / "under" / "a path", ROOT / "figures" / "demo-click.html"
    if not demo.is_file():
        subprocess.run([sys.executable, "-m", "dense_ssl.viz.clickable", str(demo)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-f", "site/mkdocs.yml", "-d", str(folder)]
    nowhere = "http://127.0.0.1:9"                                  # whatever asks for the network fails
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(book: Path) -> dict[Path, Links]:
    own = (page for page in book.rglob("*.html") if page.relative_to(book).parts[0] != "files")
    return {page: Links(page.read_text()) for page in own}


def test_links(book: Path, pages: dict[Path, Links]):
    "Every link and picture leads to a file of the book, by a relative address; anchors are there."
    broken, strange = [], []
    for page, found in pages.items():
        for address in found.links + found.loads:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "mailto", "data"):
                strange += [(page.name, address)] if address in found.loads and parts.scheme != "data" else []
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and target.is_relative_to(book.resolve())
            if not there or parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                broken.append((page.relative_to(book).as_posix(), address))
    assert not broken, f"{len(broken)} broken links, the first: {broken[:10]}"
    assert not strange, f"loaded from elsewhere: {strange[:10]}"


@pytest.mark.parametrize(
    "what", ["table small/none-T1", "figure small/none words", "tables none", "section limits none"]
)
def test_missing(what: str, tmp_path: Path):
    "A page that asks for a table, a figure or a section that is not there is not built; one sentence says so."
    sys.path.insert(0, str(ROOT / "site"))
    import hooks

    with pytest.raises(PluginError, match="none") as said:
        hooks.included(f"Before. {{{{ {what} }}}} After.", "papers/some.md", hooks.Links(), {})
    assert "\n" not in str(said.value)
    assert "not made yet" in hooks.included("{{ click none }}", "papers/some.md", hooks.Links(), {})
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# One page\n\n{{{{ {what} }}}}\n")
    site = ROOT / "site"
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {site / 'mkdocs.yml'}\nhooks: [{site / 'hooks.py'}]\n")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-f", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    said = (done.stderr + done.stdout).strip()
    assert done.returncode and "none" in said and len(said.splitlines()) < 4, said


def test_whole(book: Path, pages: dict[Path, Links]):
    "Every notebook is a chapter that links to itself and names its command; every module has a page of its docstrings."
    chapters = [p for p in notebooks() if p.name != "index.ipynb"]
    for path in chapters:
        name = path.relative_to(ROOT / "nbs").as_posix()
        page = book / "chapters" / name.replace(".ipynb", ".html")
        text = page.read_text()
        assert (book / "files" / "nbs" / name).is_file() and f"files/nbs/{name}" in text, name
        assert "run it:" in text and f"nbs/{name}" in text, name
    api = {p.stem for p in (book / "api").glob("*.html")}
    assert {"geometry.regions", "methods.grid", "viz.clickable"} <= api and len(api) > 60
    assert "coherent_regions" in (book / "api" / "geometry.regions.html").read_text()


def test_chapters_read(book: Path):
    "Equations are MathML, a test is one line, exported code and pictures stand."
    text = (book / "chapters" / "04_objectives" / "00_pixel_contrast.html").read_text()
    assert "<math" in text and "arithmatex" not in text and "$$" not in text
    assert re.search(r"<details class=\"success holds\">\s*<summary>✓ \w", text)
    assert "def pixel_contrast" in re.sub(r"<[^>]+>", "", text)
    assert "default_exp" not in text and "#| export" not in text
    assert len(list((book / "chapters").rglob("*.png")) + list((book / "chapters").rglob("*.jpeg"))) > 50
    for page in ("pixdepth", "cpcdr", "auxiliary", "geosets"):
        text = (book / "papers" / f"{page}.html").read_text()
        assert "<table" in text and "<math" in text and "Where it departs" in text
        source = (ROOT / "site" / "pages" / "papers" / f"{page}.md").read_text()
        shown = len(re.findall(r"\{\{ (table|figure) ", source))
        below = re.findall(r'<p class="from">(.*?)</p>', text)       # under each: of this code or not, how made again
        assert len(below) >= shown > 2 and all(re.search("of this code|[Ss]tale|cannot be told", b) or "no run" in b
                                               for b in below), below
        assert text.count("make reproduce PROFILE=") >= shown


@needs_browser
def test_opened(book: Path, tmp_path: Path):
    "From the disk: nothing is loaded from elsewhere, the search finds, and no page is wider than a telephone."
    from playwright.sync_api import sync_playwright

    shots = Path(os.environ.get("DENSE_SSL_SCREENSHOTS", tmp_path)).resolve()
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = chrome.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(120_000)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((book / "index.html").as_uri())
        page.locator("iframe.click").scroll_into_view_if_needed()
        inside = page.frame_locator("iframe.click").locator(".dense-explorer")
        before = inside.get_attribute("data-point")
        inside.locator(".dense-face").first.click(position={"x": 20, "y": 30})
        assert inside.get_attribute("data-point") != before                  # clicked in the book, without a kernel
        page.wait_for_function("document.querySelector('iframe.click').style.height.endsWith('px')")
        high = inside.evaluate("e => e.getBoundingClientRect().bottom")       # the frame is as high as what is in it
        assert 0 <= page.locator("iframe.click").bounding_box()["height"] - high < 60
        page.screenshot(path=shots / "site-index.png")
        page.locator("[data-md-component=search-query]").press_sequentially("sinkhorn")
        page.locator(".md-search-result__item").first.wait_for()
        assert "sinkhorn" in page.locator(".md-search-result__list").inner_text().lower()
        for name in ("papers/geosets", "chapters/04_objectives/00_pixel_contrast", "results", "api/geometry.regions"):
            page.set_viewport_size({"width": 1300, "height": 900})
            page.goto((book / f"{name}.html").as_uri())
            page.screenshot(path=shots / f"site-{name.split('/')[-1]}.png", full_page=True)
            page.set_viewport_size({"width": 390, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            page.screenshot(path=shots / f"site-{name.split('/')[-1]}-narrow.png")
        assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked) and not wrong, wrong
        chrome.close()
