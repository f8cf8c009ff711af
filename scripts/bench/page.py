"""Measures the page: load and live updates in a real browser, and what open streams cost a JobServer.

python -m bench.page (in scripts/). Browser and JobServer share this machine and its clock; the records are written to a
store in this process for the browser, and to a real ZooKeeper for the memory.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from browser import Browser, Page
from page_server import P, PageServer

from edl_collective.coord.key_file import load_or_create_key
from edl_collective.coord.records import NodeRecord, encode
from edl_collective.coord.zk_store import ZkStore
from jobserver.local_zookeeper import LocalZooKeeper

READY_TIMEOUT_S = 60.0
NODES = 1000
JOBS = 200
STREAMS = 20
CHANGES = 300
#: longer than the control loop writes about a worker, so that no change waits for one before it
BETWEEN_S = 1.0
MIB = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="loads, and updates (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(arguments)
    found: dict[str, object] = {"load_average": os.getloadavg()}
    with tempfile.TemporaryDirectory() as folder:
        found |= in_browser(Path(folder), options.runs)
        found |= memory(Path(folder))
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def in_browser(folder: Path, runs: int) -> dict[str, object]:
    with ExitStack() as running:
        server = PageServer()
        running.callback(server.close)
        server.node("node-a", slots=8)
        server.submit("train", max_np=8)
        browser = Browser(folder)
        running.callback(browser.close)
        small = [load_ms(browser, server, "jobs", "[data-key=train]") for _ in range(runs)]
        page = browser.page(server.address())
        page.wait("document.querySelector('[data-key=train]')")
        page.run("location.hash = '#/jobs/train'")
        page.wait("document.querySelector('[aria-label=Workers] tbody')")
        updates = [update_ms(page, server, number) for number in range(runs)]
        for number in range(NODES):
            server.node(f"node-{number}", slots=8)
        for number in range(JOBS):
            server.submit(f"job-{number}", max_np=64)
        large = [load_ms(browser, server, "nodes", "[data-node=node-9] .taken") for _ in range(runs)]
    return {"load_ms": spread(small), f"load_{NODES}_nodes_ms": spread(large), "update_ms": spread(updates)}


def load_ms(browser: Browser, server: PageServer, view: str, until: str) -> float:
    """From the navigation to a tab that shows what it was opened for; files are asked for again, and not sent again."""
    page = browser.page(server.address())
    page.wait("document.getElementById('link').textContent === 'live'")
    page.open(server.address(view))
    found = float(page.wait(f"document.querySelector({json.dumps(until)}) && performance.now()"))
    page.close()
    return found


def update_ms(page: Page, server: PageServer, number: int) -> float:
    """From the record of a worker in the store to its row in the page."""
    look = f"""new Promise((found) => {{ const look = () => document.querySelector('[data-key=w{number}]')
        ? found(performance.timeOrigin + performance.now()) : requestAnimationFrame(look); look(); }})"""
    page.run(f"window.seen = {look}; 0")
    time.sleep(BETWEEN_S)
    began_ms = time.time() * 1000
    server.worker("train", number, "node-a")
    return float(page.run("window.seen")) - began_ms


def memory(folder: Path) -> dict[str, object]:
    """Of a JobServer of its own with NODES and JOBS, before and with STREAMS that read nothing while much changes."""
    with (
        LocalZooKeeper(folder / "zookeeper") as zookeeper,
        closing(ZkStore(zookeeper.hosts).start(READY_TIMEOUT_S)) as store,
    ):
        for number in range(NODES):
            put_node(store, number, "start")
        with job_server(folder, zookeeper.hosts) as (process, url, token), ExitStack() as streams:
            headers = {"Authorization": f"Bearer {token}"}
            with httpx.Client(base_url=url, headers=headers, timeout=READY_TIMEOUT_S) as http:
                for number in range(JOBS):
                    job = {"job": f"job-{number}", "command": ["train"], "max_np": 64}
                    http.post("/api/v1/jobs", json=job).raise_for_status()
                http.get("/api/v1/nodes").raise_for_status()
            before = process.memory_info().rss
            for _ in range(STREAMS):
                streams.enter_context(stream(url, token))
            time.sleep(2)
            opened = process.memory_info().rss
            for change in range(CHANGES):
                put_node(store, change, "changed")
            time.sleep(2)
            after = process.memory_info().rss
    sizes = {"without_streams": before, "with_streams": opened, "with_streams_that_read_nothing": after}
    return {"memory_mib": {name: round(size / MIB, 1) for name, size in sizes.items()}, "streams": STREAMS}


def put_node(store: ZkStore, number: int, label: str) -> None:
    name = f"node-{number}"
    found = store.get(P.node(name))
    labels = {"state": label}
    record = NodeRecord(node=name, incarnation="i", address="127.0.0.1", port=9, slots=8, labels=labels)
    store.set(P.node(name), encode(record), None if found is None else found.version)


@contextmanager
def job_server(folder: Path, hosts: str) -> Iterator[tuple[psutil.Process, str, str]]:
    """A process of its own on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    key = folder / "key"
    command = ["--zookeeper", hosts, "--key-file", str(key), "--server-port", str(port)]
    token = load_or_create_key(key).api_token
    url = f"http://127.0.0.1:{port}"
    with (folder / "jobserver.log").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", "jobserver", *command], stdout=log, stderr=log)
    try:
        until_s = time.monotonic() + READY_TIMEOUT_S
        while not leads(url):
            if child.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError((folder / "jobserver.log").read_text())
            time.sleep(0.1)
        yield psutil.Process(child.pid), url, token
    finally:
        child.terminate()
        child.wait(READY_TIMEOUT_S)


def leads(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/api/v1/health", timeout=5).json()["leader"])
    except httpx.HTTPError:
        return False


@contextmanager
def stream(url: str, token: str) -> Iterator[None]:
    """A client that asks for everything and reads only the first bytes of it."""
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    with socket.create_connection((where.hostname, where.port), READY_TIMEOUT_S) as client:
        head = "GET /api/v1/stream?topics=jobs,nodes,services HTTP/1.1\r\nHost: x\r\n"
        client.sendall(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 200")
        yield


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": round(statistics.median(values)), "least": round(ordered[0]), "most": round(ordered[-1])}


if __name__ == "__main__":
    sys.exit(main())
