"""The page of a JobServer in a real browser: one of each for the tests of a file, and a small cluster for each test."""

from collections.abc import Iterator

import pytest
from browser import Browser
from page_server import PageServer
from page_tab import Shown


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page_server() -> Iterator[PageServer]:
    found = PageServer()
    yield found
    found.close()


@pytest.fixture(scope="module")
def tab(page_server: PageServer, browser: Browser) -> Shown:
    return Shown(page_server, browser)


@pytest.fixture
def shown(tab: Shown) -> Iterator[Shown]:
    """A small cluster with one job of each fate; what the page does wrong fails the test."""
    server = tab.server
    tab.view("jobs", ".sum")  # nothing is asked for that is about to go
    server.without_jobs_and_nodes()
    server.node("node-a", zone="east")
    server.node("node-b", zone="west")
    server.submit("resnet50")
    server.submit("bert", priority=5, min_np=64, max_np=64)
    server.training("resnet50")
    server.spent("resnet50", epochs_total=90, samples_per_s=412.5, loss=0.21, accuracy=0.93)
    for number in (0, 1):
        server.worker("resnet50", number, "node-a")
    server.world("resnet50", "node-a", 2)
    server.logs.text = b"epoch 0\nepoch 1\n"
    tab.page.errors.clear()
    yield tab
    tab.page.resize(1200, 900)
    tab.page.prefer("light")
    assert tab.page.errors == []
    assert tab.page.run("window.hacked") is None
