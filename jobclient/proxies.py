"""The proxies that a JobClient has open, one for each job of its node at a time.

Invariant: a proxy serves one submission of its job. What it knows of generations and epochs is of that one, and would
keep the workers of a later job of the same name out of their world. When one is opened or closed is for the caller.
"""

from collections.abc import Callable, Collection
from typing import Protocol

from edl_collective.coord.records import DriverRecord
from edl_collective.messages import AgentMessage
from jobclient.decide import Submission


class Proxy(Protocol):
    """What the agent tells the proxy of one job on this node; jobclient.rendezvous_proxy implements it."""

    def worker_gate(self, worker: str, last_generation: int) -> None: ...

    def worker_running(self, worker: str, generation: int) -> None: ...

    def worker_finished(self, worker: str) -> None: ...

    def worker_exited(self, worker: str, detail: str) -> None: ...

    def driver_changed(self, driver: DriverRecord | None) -> None: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


#: (job, send(worker, message)) -> the proxy of that job
ProxyFactory = Callable[[str, Callable[[str, AgentMessage], None]], Proxy]


class Proxies:
    """`send(job, worker, message)` delivers what a proxy says to a worker of this node."""

    def __init__(self, make: ProxyFactory, send: Callable[[str, str, AgentMessage], None]) -> None:
        self._make = make
        self._send = send
        #: by job, with the time when it was submitted
        self._open: dict[str, tuple[float, Proxy]] = {}

    def of(self, job: str, submitted_at: float) -> Proxy | None:
        """The open proxy of this submission; None if there is none, or one of another."""
        when, proxy = self._open.get(job, (submitted_at, None))
        return proxy if when == submitted_at else None

    async def open(self, job: str, submitted_at: float, driver: DriverRecord | None) -> None:
        """Serve this submission, instead of an earlier one if need be; harmless if it is served already."""
        if self.of(job, submitted_at) is not None:
            return
        await self._close(job)

        def send(worker: str, message: AgentMessage) -> None:
            self._send(job, worker, message)

        proxy = self._make(job, send)
        self._open[job] = (submitted_at, proxy)
        await proxy.start()
        proxy.driver_changed(driver)

    def driver_changed(self, job: str, submitted_at: float | None, driver: DriverRecord | None) -> None:
        """Tell the job's proxy, unless it serves another submission; None: the job is gone, and so is its driver."""
        when, proxy = self._open.get(job, (0.0, None))
        if proxy is not None and submitted_at in (when, None):
            proxy.driver_changed(driver)

    async def keep(self, needed: Collection[Submission]) -> list[str]:
        """Close all others; their jobs."""
        others = [job for job, (submitted_at, _) in self._open.items() if (job, submitted_at) not in needed]
        for job in others:
            await self._close(job)
        return others

    async def _close(self, job: str) -> None:
        _, proxy = self._open.pop(job, (0.0, None))
        if proxy is not None:
            await proxy.close()
