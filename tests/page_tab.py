"""A tab of a real browser in which the page of a JobServer is shown, and pictures of it.

EDL_SCREENSHOTS=docs/images in the environment writes the pictures of the documentation.
"""

import json
import os
from pathlib import Path

from browser import Browser, Page
from page_scripts import LATER
from page_server import P, PageServer

from edl_collective.coord.records import JobSpec, decode


class Shown:
    """One tab on one server."""

    def __init__(self, server: PageServer, browser: Browser) -> None:
        self.server = server
        self.page = browser.page(server.address())
        self.page.wait("document.getElementById('link').textContent === 'live'")

    def view(self, view: str, until: str) -> Page:
        """Show a view until something is there."""
        self.page.run(f"location.hash = {json.dumps('#/' + view)}")
        self.page.wait(f"document.querySelector({json.dumps(until)})")
        return self.page

    def spec(self, job: str) -> JobSpec:
        found = self.server.store.get(P.spec(job))
        assert found is not None
        return decode(found.data, JobSpec)


def picture(page: Page, name: str, size: tuple[int, int] = (1200, 800)) -> None:
    folder = os.environ.get("EDL_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.resize(*size)
        page.run("document.activeElement.blur()")
        page.run(LATER)
        path = Path(folder) / f"page-{name}.png"
        page.screenshot(path)
        assert path.stat().st_size < 150_000, f"{path} is too large for the documentation"
