"""The site builds without a warning, loads nothing from elsewhere, and its reference has everything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from doc_blocks import ROOT
from docsite.commands import PROGRAMS, commands
from docsite.http_api import document

import checkpoints
import edl_collective

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [str(ROOT / "scripts" / "docs.sh"), "build", "--site-dir", str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """Collects what a page makes the browser load, its ids, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values.get("href") or "")
        elif tag in ("script", "img", "iframe", "source"):
            self.loaded.append(values.get("src") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def page(site: Path, name: str) -> Loaded:
    return Loaded((site / name).read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    files = sorted(site.rglob("*.html"))
    assert len(files) > 40
    for path in files:
        for url in Loaded(path.read_text(encoding="utf-8")).loaded:
            assert not re.match(r"(?:\w+:)?//", url), f"{path} loads {url}"
            target = path.parent / url.partition("#")[0].partition("?")[0]
            assert path.name == "404.html" or target.exists(), f"{path} loads {url}, which is not there"
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)[\s'\"]*(?:\w+:)?//", path.read_text(encoding="utf-8")), path


def test_every_command_and_option_is_there(site: Path) -> None:
    found = page(site, "reference/commands.html")
    for command, ctx in commands():
        assert ctx.command_path.replace(" ", "-") in found.ids
        for parameter in command.get_params(ctx):
            missing = [option for option in parameter.opts if option not in found.text]
            assert not missing, f"{ctx.command_path}: {missing}"
    for module in PROGRAMS:
        assert f"python-m-{module.replace('.', '')}" in found.ids
    assert "--absence-timeout SECONDS" in found.text
    assert "--threads-per-slot N" in found.text


def test_every_route_is_there(site: Path) -> None:
    text = page(site, "reference/http.html").text
    for path, methods in document()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text


def test_every_public_name_is_there(site: Path) -> None:
    ids = page(site, "reference/python.html").ids
    for package in (edl_collective, checkpoints):
        for name in set(package.__all__) - {"DEFAULT_FOLDER"}:
            assert f"{package.__name__}.{package._HOME[name]}.{name}" in ids
    assert {"distill.reader.DistillReader", "distill.losses.kd", "distill.errors.NoTeacher"} <= ids


def test_every_decision_is_listed(site: Path) -> None:
    text = page(site, "decisions/index.html").text
    for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"):
        assert (site / "decisions" / f"{path.stem}.html").is_file()
        assert path.read_text(encoding="utf-8").partition(": ")[2].partition("\n")[0].replace("`", "") in text


def test_the_script_explains_itself() -> None:
    done = subprocess.run([str(ROOT / "scripts" / "docs.sh"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--site-dir" in done.stdout
    assert subprocess.run([str(ROOT / "scripts" / "docs.sh"), "nosuch"], capture_output=True).returncode == 2


def test_the_search_works_without_a_server(site: Path, tmp_path: Path) -> None:
    """In a browser that opened the site from its folder; nothing on the way is an error."""
    browser = Browser(tmp_path)
    try:
        tab = browser.page((site / "start.html").as_uri())
        tab.wait("document.querySelector('.md-search__input') && document.readyState === 'complete'")
        tab.run("document.querySelector('label.md-header__button[for=__search]').click()")
        typed = "const field = document.querySelector('.md-search__input'); field.focus(); field.value = 'undrain';"
        tab.run(f"{{ {typed} field.dispatchEvent(new KeyboardEvent('keyup', {{bubbles: true}})); }}")
        tab.wait("document.querySelector('.md-search-result__link[href*=\"commands.html\"]')")
        assert tab.errors == []
    finally:
        browser.close()
