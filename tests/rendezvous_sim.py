"""Simulated workers that speak Horovod's rendezvous without torch: the requests of its C++ HTTPStore, one at a time.

A SimNode is a node's RendezvousServer and JobProxy with its ephemeral in a real store; its SimWorkers go through gate,
rendezvous (six full meshes, like GlooContext) and running. What gloo does over its own sockets is a Meeting in this
process. Faults: kill (a worker), vanish (a node).
"""

import asyncio
import contextlib
from dataclasses import dataclass, field

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    DriverRecord,
    JobSpec,
    NodeRecord,
    Plan,
    PlannedWorker,
    Rendezvous,
    decode,
    encode,
)
from edl_collective.coord.store import Store
from edl_collective.messages import Abort, AgentMessage, Assigned, Interrupt, Leave
from jobclient.rendezvous_http import RendezvousServer
from jobclient.rendezvous_proxy import JobProxy

#: what gloo puts for each peer: a socket address and a sequence number
PEER_BYTES = 136
POLL_S = 0.01


class RequestFailed(Exception):
    """Raised where the C++ client would give up and abort its process."""


class _Request(asyncio.Protocol):
    def __init__(self, data: bytes, done: asyncio.Future[tuple[int, bytes]]) -> None:
        self._data, self._done = data, done
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._data)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if end:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(body) >= length and not self._done.done():
                self._done.set_result((int(head[9:12]), body))
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(RequestFailed("the server closed the connection"))


async def request(base: str, method: str, rest: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request as the C++ client sends it: `base` is Assigned.rendezvous, `rest` is /<scope>/<key>."""
    address, _, path = base.partition("/")
    host, _, port = address.partition(":")
    text = f"{method} /{path}:0{rest} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
    done: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: _Request(text.encode() + body, done), host, int(port)
    )
    try:
        return await done
    finally:
        transport.abort()


class Meeting:
    """A barrier over gloo's own connections: all of a context's workers, or nobody."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._complete = asyncio.Event()

    async def join(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._complete.set()
        await self._complete.wait()


class Meetings:
    """The meeting of each context of each generation."""

    def __init__(self) -> None:
        self._meetings: dict[tuple[int, str], Meeting] = {}

    def at(self, generation: int, context: str, size: int) -> Meeting:
        return self._meetings.setdefault((generation, context), Meeting(size))


async def mesh(place: Assigned, scope: str, rank: int, size: int, meeting: Meeting) -> int:
    """One context: what gloo's connectFullMesh asks of the store. Returns the number of requests."""
    count = 0

    async def ask(method: str, key: str, body: bytes = b"") -> tuple[int, bytes]:
        nonlocal count
        count += 1
        status, got = await request(place.rendezvous, method, f"/{scope}/{key}", body)
        if status not in (200, 404):
            raise RequestFailed(f"{method} {scope}/{key}: {status}")
        return status, got

    await ask("PUT", f"rank_{rank}", b"host")
    for peer in range(rank):
        await ask("GET", f"rank_{peer}")
    blob = bytes([rank % 256]) * ((size - 1) * PEER_BYTES)
    await ask("PUT", str(rank), blob)
    for peer in range(size):
        if peer == rank:
            continue
        while (await ask("GET", str(peer)))[0] != 200:  # noqa: ASYNC110 - the C++ client polls, and so does this one
            await asyncio.sleep(POLL_S)
        _, got = await ask("GET", str(peer))
        assert got == bytes([peer % 256]) * ((size - 1) * PEER_BYTES), "a value of another rank or generation"
    await meeting.join()
    await ask("DELETE", str(rank))
    return count


@dataclass
class SimWorker:
    """One worker; `state`: gate, init, running, left, dead. `hold_init` keeps it inside the rendezvous."""

    name: str
    node: "SimNode"
    state: str = "new"
    generation: int = 0
    place: Assigned | None = None
    #: generation -> (rank, size) of every world it has run in
    worlds: dict[int, tuple[int, int]] = field(default_factory=dict)
    requests: int = 0
    cut: int = 0

    def __post_init__(self) -> None:
        self.inbox: asyncio.Queue[AgentMessage] = asyncio.Queue()
        self.task = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        while True:
            self.state = "gate"
            self.node.proxy.worker_gate(self.name, self.generation)
            answer = await self._answer()
            if isinstance(answer, Leave):
                self.state = "left"
                self.node.proxy.worker_exited(self.name, "left")
                return
            self.place, self.generation, self.state = answer, answer.generation, "init"
            await self._rendezvous(answer)
            self.state = "running"
            self.worlds[answer.generation] = (answer.rank, answer.size)
            self.node.proxy.worker_running(self.name, answer.generation)
            while self.cut < self.generation:
                self._note(await self.inbox.get())

    async def _answer(self) -> Assigned | Leave:
        while True:
            message = await self.inbox.get()
            if isinstance(message, Assigned | Leave):
                return message
            self._note(message)

    def _note(self, message: AgentMessage) -> None:
        if isinstance(message, Interrupt | Abort):
            self.cut = max(self.cut, message.generation)

    def deliver(self, message: AgentMessage) -> None:
        if isinstance(message, Abort) and self.state == "init" and message.generation >= self.generation:
            self.kill("killed by SIGABRT")  # nobody leaves Horovod's init alive when a member of it died
        else:
            self.inbox.put_nowait(message)

    def kill(self, detail: str = "killed by SIGKILL") -> None:
        if self.state not in ("left", "dead"):
            self.state = "dead"
            self.task.cancel()
            self.node.proxy.worker_exited(self.name, detail)

    async def _rendezvous(self, place: Assigned) -> None:
        status, got = await request(place.rendezvous, "GET", f"/rank_and_size/{self.node.name}:{place.local_rank}")
        expected = (place.rank, place.size, place.local_rank, place.local_size, place.cross_rank, place.cross_size)
        assert (status, got) == (200, ",".join(map(str, expected)).encode())
        contexts = (
            ("global", "global", place.rank, place.size),
            (f"local_{self.node.name}", f"local_{self.node.name}", place.local_rank, place.local_size),
            (f"cross_{place.local_rank}", f"cross_{place.local_rank}", place.cross_rank, place.cross_size),
        )
        for suffix in ("", "_process_set_hash_5a"):
            for scope, context, rank, size in contexts:
                meeting = self.node.meetings.at(place.generation, context + suffix, size)
                self.requests += await mesh(place, scope + suffix, rank, size, meeting)


class SimNode:
    """A node of one job: present in the store, following the job's driver."""

    def __init__(self, name: str, store: Store, paths: Paths, job: str, key: ClusterKey, meetings: Meetings) -> None:
        self.name, self.meetings = name, meetings
        self._store, self._paths, self._job = store, paths, job
        self._loop = asyncio.get_running_loop()
        self._server = RendezvousServer()
        self.workers: dict[str, SimWorker] = {}
        self.worlds: list[Rendezvous] = []
        self.proxy = JobProxy(job, name, f"{name}-1", key, self._send, self._server, self.worlds.append)
        self._mirror: Mirror | None = None

    async def start(self) -> "SimNode":
        await self._server.start()
        await self.proxy.start()
        record = NodeRecord(node=self.name, incarnation=f"{self.name}-1", address="127.0.0.1", port=1, slots=8)
        await asyncio.to_thread(self._store.create, self._paths.node(self.name), encode(record), ephemeral=True)
        self._mirror = Mirror(self._store, self._paths.driver(self._job), self._changed)
        self._look()
        return self

    def spawn(self, name: str) -> SimWorker:
        self.workers[name] = SimWorker(name, self)
        return self.workers[name]

    async def vanish(self) -> None:
        """The node dies: connections, workers and the ephemeral at once."""
        await self.close()
        await asyncio.to_thread(self._store.delete, self._paths.node(self.name))

    async def close(self) -> None:
        if self._mirror is not None:
            self._mirror.close()
        for worker in self.workers.values():
            if worker.state not in ("left", "dead"):
                worker.state = "dead"
            worker.task.cancel()
        await asyncio.gather(*(w.task for w in self.workers.values()), return_exceptions=True)
        await self.proxy.close()
        await self._server.close()

    def _send(self, worker: str, message: AgentMessage) -> None:
        self.workers[worker].deliver(message)

    def _changed(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the store
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        assert self._mirror is not None
        found = self._mirror.refresh().get(self._paths.driver(self._job))
        self.proxy.driver_changed(decode(found.data, DriverRecord) if found else None)


class SimJob:
    """The leader's part: the spec and the plans of one job."""

    def __init__(self, store: Store, paths: Paths, job: str, *, min_np: int = 1) -> None:
        self._store, self._paths, self._job = store, paths, job
        self._revision = 0
        self.planned: dict[str, str] = {}
        spec = JobSpec(job=job, command=("train",), min_np=min_np, max_np=1024)
        store.create(paths.spec(job), encode(spec))

    def plan(self, planned: dict[str, str], reason: str) -> None:
        """`planned`: worker -> node."""
        self._revision += 1
        self.planned = planned
        plan = Plan(
            revision=self._revision,
            workers=tuple(PlannedWorker(worker, node, 0) for worker, node in planned.items()),
            driver_node=None,
            reason=reason,
            next_worker=1 + max((int(w[1:]) for w in planned), default=0),
            leader_epoch=1,
        )
        path = self._paths.plan(self._job)
        found = self._store.get(path)
        self._store.set(path, encode(plan), found.version if found else None)

    def record(self) -> Rendezvous:
        found = self._store.get(self._paths.rendezvous(self._job))
        return decode(found.data, Rendezvous) if found else Rendezvous.EMPTY
