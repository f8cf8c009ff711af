"""A JobServer's HTTP interface in this process, for tests: the loop turns when the test says so."""

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import ManualClock
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    JobSpec,
    NodeRecord,
    Record,
    decode,
    encode,
)
from edl_collective.coord.signing import SpecSigner
from jobserver.api import Service, create_app
from jobserver.changing import Changing
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig

P = Paths()
KEY = ClusterKey(b"k" * 32)
TOKEN = KEY.api_token
SIGNER = SpecSigner(KEY)
SUBMIT = {"job": "j", "command": ["python", "train.py"], "min_np": 1, "max_np": 4}


class Client:
    """Requests to an application in this process, one event loop each."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.headers = {"Authorization": f"Bearer {TOKEN}"}

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return asyncio.run(self._request(method, path, {"headers": self.headers, **arguments}))

    async def _request(self, method: str, path: str, arguments: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **arguments)

    def get(self, path: str, **arguments: object) -> httpx.Response:
        return self.request("GET", path, **arguments)

    def post(self, path: str, **arguments: object) -> httpx.Response:
        return self.request("POST", path, **arguments)


class Server:
    """A JobServer whose loop turns when the test says so."""

    def __init__(self, changing: Changing | None = None) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock(1000.0)
        leadership = Leadership(self.store, P, "s1", "http://s1")
        self.controller = Controller(self.store, P, leadership, self.clock, ReconcileConfig(), SIGNER)
        self.service = Service(self.store, P, self.controller, self.clock, KEY, changing)
        self.http = Client(create_app(self.service))

    def put(self, path: str, record: Record) -> None:
        found = self.store.get(path)
        version = 0 if found is None else found.version + 1
        data = SIGNER.sign(path, record, version) if isinstance(record, JobSpec) else encode(record)
        self.store.set(path, data, None if found is None else found.version)

    def node(self, name: str = "a", slots: int = 4, port: int = 1) -> None:
        record = NodeRecord(node=name, incarnation="i", address="127.0.0.1", port=port, slots=slots)
        self.put(P.node(name), record)

    def spec(self, job: str = "j") -> JobSpec:
        found = self.store.get(P.spec(job))
        assert found is not None
        return decode(found.data, JobSpec)


def refused(answer: httpx.Response, status: int, text: str, field: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "field"}
    assert text in answer.json()["error"]
    assert answer.json()["field"] == field
