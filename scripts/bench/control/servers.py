"""Real JobServers on a large cluster: memory, how the API answers while jobs are resized, and a change of leader."""

import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from bench.control.cluster import LargeCluster
from edl_collective.coord.key_file import load_or_create_key

START_S = 180.0
RATE_HZ = 200.0
SECONDS = 10.0
#: what people and tools ask most
PATHS = ("/api/v1/jobs", "/api/v1/jobs/j007", "/api/v1/nodes", "/api/v1/health", "/api/v1/jobs/j011/events")


class Server:
    """One JobServer process."""

    def __init__(self, folder: Path, name: str, zookeeper: str) -> None:
        self._key = folder / "key"
        self.token = load_or_create_key(self._key).api_token
        self._log = folder / f"{name}.log"
        command = [
            sys.executable, "-m", "jobserver", "--zookeeper", zookeeper, "--server-port", "0", "--server-name", name,
            "--key-file", str(self._key), "--absence-timeout", "0.5",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.port = 0
        wait(self._told_port, f"{name} serves")

    @property
    def resident_mb(self) -> float:
        return float(psutil.Process(self._process.pid).memory_info().rss) / 1e6

    def health(self) -> dict[str, object]:
        return dict(json.loads(self.get("/api/v1/health")))

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            return connection.getresponse().read()
        finally:
            connection.close()

    def pin(self, core: int) -> None:
        """Let it run on one core alone."""
        os.sched_setaffinity(self._process.pid, {core})

    def watches(self, other: "Server") -> bool:
        """Whether it would hear at once of the other's death."""
        return any(c.raddr and c.raddr.port == other.port for c in psutil.Process(self._process.pid).net_connections())

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)

    def _told_port(self) -> bool:
        told = re.search(r" serves http://[^ ]+:(\d+)$", self._log.read_text(), re.MULTILINE)
        if told is None and self._process.poll() is not None:
            raise RuntimeError(f"the JobServer did not start: {self._log.read_text()}")
        self.port = int(told[1]) if told else 0
        return told is not None


@contextmanager
def servers(folder: Path, zookeeper: str, count: int = 2) -> Iterator[list[Server]]:
    """The first of them leads."""
    with ExitStack() as stack:
        found: list[Server] = []
        for number in range(count):
            found.append(Server(folder, f"s{number}", zookeeper))
            stack.callback(found[-1].close)
            wait(lambda: found[0].health().get("leading"), "the first JobServer leads")
        yield found


@contextmanager
def machines(cluster: LargeCluster) -> Iterator[None]:
    """Carry out what is planned, again and again, as the machines of the cluster would."""

    def run(stopping: threading.Event) -> None:
        while not stopping.is_set():
            cluster.carry_out()
            stopping.wait(0.5)  # a poll: the bench plays a thousand machines, whose watches would cost more

    with meanwhile("bench-machines", run):
        yield


@contextmanager
def meanwhile(name: str, run: Callable[[threading.Event], None]) -> Iterator[None]:
    """`run` in a thread, until it is told to stop."""
    stopping = threading.Event()
    thread = threading.Thread(target=run, name=name, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def latencies_ms(server: Server, seconds: float = SECONDS) -> list[float]:
    """Each of RATE_HZ requests a second, sent when it is due: a late answer makes the next ones late, too."""
    found: list[float] = []
    lock = threading.Lock()
    lanes = 8

    def lane(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        began_s = time.monotonic()
        mine = []
        for turn in range(int(RATE_HZ * seconds / lanes)):
            due_s = began_s + (turn * lanes + number) / RATE_HZ
            time.sleep(max(0.0, due_s - time.monotonic()))  # the load is given by a clock
            connection.request(
                "GET", PATHS[(turn + number) % len(PATHS)], headers={"Authorization": f"Bearer {server.token}"}
            )
            connection.getresponse().read()
            mine.append((time.monotonic() - due_s) * 1e3)
        connection.close()
        with lock:
            found.extend(mine)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def wait(condition: Callable[[], object], what: str, timeout_s: float = START_S) -> float:
    """Until `condition` holds; returns how long that took."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() > began_s + timeout_s:
            raise RuntimeError(f"after {timeout_s:g} s not true: {what}")
        time.sleep(0.005)  # the state of another process has no event to wait for
    return time.monotonic() - began_s
