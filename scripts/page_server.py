"""A JobServer that a browser can show: real HTTP and a real control loop on a store in this process.

JobClients are played by whoever uses it: it writes what they would write, and serves the logs that they would serve.
"""

import http.server
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx
import uvicorn

from distill.records import StudentRecord, TeacherRecord
from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    Event,
    Member,
    NodeRecord,
    Progress,
    Record,
    Rendezvous,
    Spent,
    WorkerRecord,
    WorkerState,
    encode,
)
from edl_collective.coord.signing import SpecSigner
from jobserver.api import Service, create_app
from jobserver.api_stream import close_streams
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig

P = Paths()
KEY = ClusterKey(b"k" * 32)
TOKEN = KEY.api_token


class _Logs(http.server.BaseHTTPRequestHandler):
    """GET /logs/JOB/WORKER as a JobClient answers it."""

    text = b""

    def do_GET(self) -> None:
        offset = int(self.path.partition("offset=")[2].partition("&")[0])
        body = self.text[offset:]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-EDL-Next-Offset", str(offset + len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class PageServer:
    """HTTP can be stopped and started again on the same port; the store goes on."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        leadership = Leadership(self.store, P, "server-1", "http://server-1")
        self.controller = Controller(self.store, P, leadership, SystemClock(), ReconcileConfig(), SpecSigner(KEY))
        self.controller.start()
        self.logs: type[_Logs] = type("Logs", (_Logs,), {})
        self._log_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.logs)
        self._log_thread = threading.Thread(target=self._log_server.serve_forever, args=(0.05,))
        self._log_thread.start()
        self.port = 0
        self.start_http()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def address(self, view: str = "") -> str:
        """Of a view, or with the token as `edl ui` prints it. With a fragment alone a tab would not load it again."""
        return f"{self.url}/?{time.monotonic_ns()}#" + (f"/{view}" if view else f"token={TOKEN}")

    def start_http(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        service = Service(self.store, P, self.controller, SystemClock(), KEY, None)
        self.app = create_app(service)
        self._http = uvicorn.Server(uvicorn.Config(self.app, log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._http.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        while not self._http.started:
            time.sleep(0.01)

    def stop_http(self) -> None:
        close_streams(self.app)
        self._http.should_exit = True
        self._thread.join()
        self._listener.close()

    def close(self) -> None:
        self.stop_http()
        self.controller.stop()
        self._log_server.shutdown()
        self._log_thread.join()
        self._log_server.server_close()

    def put(self, path: str, record: Record) -> None:
        found = self.store.get(path)
        self.store.set(path, encode(record, path), None if found is None else found.version)

    def node(self, name: str, slots: int = 4, **labels: str) -> None:
        port = self._log_server.server_address[1]
        record = NodeRecord(node=name, incarnation="i", address="127.0.0.1", port=port, slots=slots, labels=labels)
        self.put(P.node(name), record)

    def without_jobs_and_nodes(self) -> None:
        for kind in (P.jobs, P.nodes):
            self._delete(kind)

    def forget_job(self, job: str) -> None:
        self._delete(P.job(job))
        self.store.delete(P.job(job), None)

    def _delete(self, path: str) -> None:
        for name in self.store.children(path):
            self._delete(f"{path}/{name}")
            self.store.delete(f"{path}/{name}", None)

    def submit(self, job: str, **values: Any) -> None:
        """Over HTTP, as everybody does."""
        body = {"job": job, "command": ["python", "train.py"], "max_np": 4, **values}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        httpx.post(f"{self.url}/api/v1/jobs", json=body, headers=headers, timeout=60).raise_for_status()

    def worker(self, job: str, number: int, node: str, state: WorkerState = WorkerState.RUNNING) -> None:
        record = WorkerRecord(
            worker=f"w{number}",
            node=node,
            slot=number,
            incarnation="i",
            generation=1,
            state=state,
            pid=1000 + number,
            placed=True,
        )
        self.put(P.worker(job, record.worker), record)

    def world(self, job: str, node: str, size: int) -> None:
        members = tuple(Member(f"w{n}", node, n, n, size, 0, 1) for n in range(size))
        self.put(P.rendezvous(job), Rendezvous(generation=1, epoch=1, members=members))

    def progress(self, job: str, **values: Any) -> None:
        report = {"generation": 1, "world_size": 2, "epoch": 3, "step": 420, "last_step_at": time.time(), **values}
        self.put(P.progress(job), Progress(**report))

    def event(self, job: str, kind: str, text: str, ago_s: float = 0.0, **fields: Any) -> None:
        values: Mapping[str, Any] = {name.rstrip("_"): value for name, value in fields.items()}
        event = Event(at=time.time() - ago_s, kind=kind, text=text, fields=dict(values))
        self.store.append(P.event_prefix(job), encode(event))

    def teacher(self, service: str, name: str, **values: Any) -> None:
        record = {"teacher": name, "url": "http://127.0.0.1:8500", "model": "resnet50", "rate": 900.0, **values}
        self.put(P.teacher(service, name), TeacherRecord(**record))

    def student(self, service: str, name: str, **values: Any) -> None:
        self.put(P.student(service, name), StudentRecord(student=name, **values))

    def spent(self, job: str, **values: Any) -> None:
        """A report of progress that tells where ten minutes went."""
        seconds = {"train": 498.0, "data": 14.0, "teacher": 21.0, "checkpoint": 9.0, "between": 12.0}
        resizes = {"detect": 1.5, "re_form": 4.5, "restore": 3.0, "recompute": 6.0}
        now_s = time.time()
        spent = Spent(by="w0", began_at=now_s - 600, began_step=0, fresh=True, seconds=seconds | resizes)
        self.progress(job, spent=spent, last_step_at=now_s, **values)

    def training(self, job: str) -> None:
        """A job that grew, lost a worker and went on: sizes, pauses, epochs and checkpoints."""
        self.event(job, "resize", "0 -> 1 workers: start", 590, from_=0, to=1, cause="start", pause_s=None)
        size, before = 1, 1
        for epoch in range(8):
            ago_s = 520 - 60 * epoch
            size = {2: 2, 4: 4, 6: 2}.get(epoch, size)
            if size != before:
                parts = {"shutdown_s": 0.002, "gate_s": 0.045, "init_s": 0.04, "sync_s": 0.02, "batch_s": 0.03}
                text = f"{before} -> {size} workers: plan, pause 0.18 s"
                self.event(job, "resize", text, ago_s + 50, from_=before, to=size, pause_s=0.1 + 0.03 * size, **parts)
            before = size
            speed, accuracy = 240.0 * size**0.9, 1 - 0.8 * 0.6**epoch
            text = f"epoch {epoch}: {size} workers"
            values = {"samples_per_s": speed, "loss": 2.3 * 0.7**epoch, "accuracy": accuracy}
            self.event(job, "epoch", text, ago_s, epoch=epoch, step=100 * epoch, workers=size, **values)
            self.event(job, "checkpoint", f"saved epoch {epoch} in 0.21 s", ago_s - 1, epoch=epoch, seconds=0.21)
