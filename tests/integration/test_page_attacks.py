"""The page of a JobServer under attack, without a server, and without a token."""

import json
import time

import httpx
import pytest
from browser import Browser
from page_server import TOKEN, PageServer
from page_tab import Shown

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.integration

HOSTILE = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def test_text_of_the_cluster_stays_text(shown: Shown) -> None:
    server = shown.server
    server.submit("hostile", command=["python", HOSTILE], env={"A": HOSTILE}, checkpoint_url=HOSTILE)
    server.event("hostile", "epoch", HOSTILE, epoch=1, loss=HOSTILE, workers=HOSTILE)
    server.event("hostile", "resize", HOSTILE, from_=HOSTILE, to=2, pause_s=0.5)
    server.event("hostile", HOSTILE, HOSTILE)
    server.worker("hostile", 0, "node-b")
    server.node("node-c", zone=HOSTILE)
    server.logs.text = f"{HOSTILE}\n".encode() + b"\xff\xfe\x00\x1b[31m"
    server.teacher("hostile", "t", model=HOSTILE)
    server.student("hostile", "s", waiting_for=HOSTILE)
    page = shown.view("jobs/hostile", "[data-key=w0]")
    page.wait(f"document.querySelector('pre.log').textContent.includes({json.dumps(HOSTILE)})")
    assert HOSTILE in page.text("[aria-label=Events]")
    assert HOSTILE in page.text("dl")
    assert HOSTILE in shown.view("nodes", "[data-node=node-c]").text("[data-node=node-c]")
    assert HOSTILE in shown.view("services/hostile", "[data-key=s]").text("main")
    assert page.run("document.querySelectorAll('img, script:not([src])').length") == 0
    for path in ("hostile/../../x", "%E0%A4%A", "<img src=x>"):
        page.run(f"location.hash = {json.dumps('#/jobs/' + path)}")
        page.wait("document.querySelector('h1')")
    shown.view("jobs", "[data-key=hostile]")
    page.errors.clear()  # names that cannot be: the server refuses to follow them


def test_a_server_that_goes_is_told_of_and_its_return_too(shown: Shown) -> None:
    page = shown.view("jobs", "[data-key=bert]")
    shown.server.stop_http()
    try:
        page.wait("document.getElementById('link').textContent === 'reconnecting'")
        page.wait("document.getElementById('problem').textContent.includes('Not live')")
        assert "bert" in page.text("main")  # what was known is still shown
        shown.server.forget_job("bert")
    finally:
        shown.server.start_http()
    page.wait("!document.querySelector('[data-key=bert]')")
    page.wait("document.getElementById('link').textContent === 'live' && document.getElementById('problem').hidden")
    page.errors.clear()  # the browser reports each attempt
    shown.server.store.suspend()
    try:
        page.wait("document.getElementById('problem').textContent.includes('cannot reach ZooKeeper')")
    finally:
        shown.server.store.resume()
    page.wait("document.getElementById('problem').hidden")


def test_a_wrong_token_is_refused_and_the_right_one_is_in_no_address(shown: Shown, browser: Browser) -> None:
    page = browser.page(f"{shown.server.url}/#token=wrong")
    try:
        page.wait("document.querySelector('dialog').open")
        page.wait("document.querySelector('.refusal').textContent.includes('token is missing or wrong')")
        assert page.text("main") == ""
        page.run(f"document.querySelector('dialog input').value = {json.dumps(TOKEN)}")
        page.click("dialog button.primary")
        page.wait("document.querySelector('[data-key=bert]')")
        where = page.run(
            "[location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(history.state)]"
        )
        assert TOKEN not in "".join(where)
        requests = page.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert any("/api/v1/stream?" in name for name in requests)
        assert TOKEN not in "".join(requests)
    finally:
        page.close()


def test_a_client_that_goes_is_forgotten(page_server: PageServer) -> None:
    feed = page_server.app.state.feed
    url = f"{page_server.url}/api/v1/stream?topics=jobs,services"

    def following() -> bool:
        return any(follower.wish.topics == {"jobs", "services"} for follower in tuple(feed._followers))

    with httpx.stream("GET", url, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()  # kept: one that is collected closes the connection
        assert next(lines) == "event: beat"
        assert following()
    until_s = time.monotonic() + 60
    while following():
        assert time.monotonic() < until_s
        time.sleep(0.02)
