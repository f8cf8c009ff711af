"""The JobClient's loop: load what ZooKeeper says, decide, apply, wait.

Everything runs on one event loop; only the store may block, in threads. While ZooKeeper is away nothing is decided:
what runs goes on, exits still reach the driver through the job's proxy, and records wait in the outbox.
"""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import Clock, SystemClock
from edl_collective.coord.errors import CoordError
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import JobKind, JobSpec, NodeRecord
from edl_collective.coord.signing import NewestSpecs, SpecSigner
from edl_collective.coord.store import Session, Store
from edl_collective.messages import Abort, AgentMessage, Finished, Gate, Happened, Report, Running, WorkerMessage
from jobclient.config import Config
from jobclient.decide import (
    Action,
    AskBack,
    GiveUp,
    KillDriver,
    LetLeave,
    StartDriver,
    StartWorker,
    StopDriver,
    StopWorker,
    View,
    answerable,
    decide,
)
from jobclient.drain import Orders
from jobclient.driver_process import Driver
from jobclient.held_folders import HeldFolders
from jobclient.launch import DRIVER_LOG, Launcher
from jobclient.log_keeping import LogKeeping
from jobclient.node_api import log_path
from jobclient.node_metrics import NodeSight
from jobclient.presence import RETRY_S, Presence, call_soon
from jobclient.proxies import Proxies, ProxyFactory
from jobclient.reporting import Reporting, resized_after_restart
from jobclient.snapshot import Snapshot, snapshot
from jobclient.worker import Worker
from jobclient.worker_link import WorkerLink

logger = logging.getLogger(__name__)

#: how long the last records may take to reach ZooKeeper when the JobClient ends
FINAL_FLUSH_S = 5.0


class Agent:
    """One life of a node. `node` is what it registers; `run` returns when it has stopped all that it started."""

    def __init__(
        self,
        config: Config,
        node: NodeRecord,
        store: Store,
        key: ClusterKey,
        proxies: ProxyFactory,
        clock: Clock | None = None,
    ) -> None:
        self._node = node
        self._store = store
        self._key = key
        self._newest = NewestSpecs(SpecSigner(key))
        self._clock = clock or SystemClock()
        self._paths = Paths(config.zookeeper_root)
        self._reporting = Reporting(store, self._paths, self._clock)
        self._link = WorkerLink(node.node, self._token_of, self._heard, config.run_as)
        self._held = HeldFolders(node.node, user=config.run_as)
        self._log_dir = config.log_dir
        self._logs = LogKeeping(config, self._logs_in_use, self._clock)
        self._launcher = Launcher(config, node, key, str(self._link.path))
        self._session_timeout_s = config.session_timeout_s
        self._drain_timeout_s = config.drain_timeout_s
        #: monotonic time by which the workers must have left since `close`; None: each job's leave_timeout_s counts
        self._leave_by_s: float | None = None
        self._workers: dict[tuple[str, str], Worker] = {}
        self._drivers: dict[str, Driver] = {}
        self._proxies = Proxies(proxies, self._tell)
        self._snapshot = Snapshot({}, {}, {})
        self._wake = asyncio.Event()
        self._closing = False
        self._close_asked = asyncio.Event()
        #: the JobServer was told that the workers of this node are to leave
        self._said_draining = False
        #: why not yet, as last logged
        self._drain_problem = ""

    # ---- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Register, then serve until `close` has been called and nothing is left. Raises CoordError at the start."""
        loop = asyncio.get_running_loop()
        presence = Presence(self._store, self._paths, self._node, self._session_timeout_s)
        if not await self._before_closing(presence.ensure()):
            await presence.resign()
            return
        await self._link.start()
        mirror = Mirror(self._store, self._paths.jobs, lambda: call_soon(loop, self._wake.set))
        orders = Orders(self._store, self._paths, self._node.node, lambda: call_soon(loop, self._wake.set))
        try:
            async with asyncio.TaskGroup() as group:
                beside = (presence.keep(), self._reporting.publish(), self._logs.keep())
                background = [group.create_task(work) for work in beside]
                await self._loop(mirror, orders, presence)
                for task in background:
                    task.cancel()
        finally:
            mirror.close()
            orders.close()
            self._kill_all()
            await self._proxies.keep(())
            await self._link.close()
            await asyncio.to_thread(self._held.close)
            await self._reporting.last_flush(FINAL_FLUSH_S)
            await presence.resign()

    def close(self) -> None:
        """Let all workers leave at a step boundary, then stop the drivers, then end; called again: at once.

        Workers that have not left in time are stopped by the ladder.
        """
        if self._closing:
            logger.warning("stopping at once")
            self._kill_all()
        elif self._drain_timeout_s is not None:
            self._leave_by_s = self._clock.monotonic_s() + self._drain_timeout_s
        self._closing = True
        self._close_asked.set()
        self._wake.set()

    def sight(self) -> NodeSight:
        """The node as it is now."""
        holding = tuple(worker.record for worker in self._workers.values() if not worker.gone)
        return NodeSight(self._node, holding, dict(self._reporting.ends), self._store.session is Session.CONNECTED)

    async def _before_closing(self, work: Coroutine[None, None, None]) -> bool:
        """Wait for `work`, and raise what it raises; False if `close` was called before its end, which ends it."""
        working, closing = asyncio.ensure_future(work), asyncio.ensure_future(self._close_asked.wait())
        try:
            await asyncio.wait((working, closing), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return False
            await working
            return True
        finally:
            working.cancel()
            closing.cancel()

    async def _loop(self, mirror: Mirror, orders: Orders, presence: Presence) -> None:
        while True:
            self._wake.clear()
            if self._closing and not self._said_draining:
                self._said_draining = await self._drain(presence)
            known = await self._load(mirror, orders)
            if self._closing and not self._alive():
                return
            wake_at_s = await self._decide(orders) if known or self._closing else None
            if not known or (self._closing and not self._said_draining):
                wake_at_s = self._retry_s(wake_at_s)
            await self._wait(wake_at_s)

    async def _drain(self, presence: Presence) -> bool:
        """Ask for a plan without this node; whether one can be expected. The workers' time to leave runs anyway."""
        problem = "ZooKeeper does not answer"
        if self._store.session is Session.CONNECTED:
            try:
                if await presence.drain():
                    return True
                problem = "no JobServer leads"
            except CoordError as error:
                problem = str(error)
        if problem != self._drain_problem:
            logger.warning("nobody can plan the workers away yet: %s (a second signal stops them at once)", problem)
            self._drain_problem = problem
        return False

    async def _load(self, mirror: Mirror, orders: Orders) -> bool:
        """Take a new snapshot; False if ZooKeeper cannot be reached and the old one stands."""
        if self._store.session is not Session.CONNECTED:
            return False
        try:
            values = await asyncio.to_thread(mirror.refresh)
            await asyncio.to_thread(orders.refresh, self._clock.monotonic_s())
        except CoordError as error:
            logger.warning("deciding nothing: %s", error)
            return False
        before, self._snapshot = self._snapshot, snapshot(values, self._paths, self._newest)
        for problem in set(self._snapshot.problems) - set(before.problems):
            logger.error("%s", problem)
        for name in before.drivers.keys() | self._snapshot.drivers.keys():
            if (driver := self._snapshot.drivers.get(name)) != before.drivers.get(name):
                self._proxies.driver_changed(name, self._snapshot.submitted_at(name), driver)
        for name, ours in self._drivers.items():
            ours.seen(self._snapshot.drivers.get(name))
        await self._forget()
        return True

    def _view(self, orders: Orders) -> View:
        return View(
            node=self._node,
            jobs=self._snapshot.jobs,
            workers=tuple(worker.view() for worker in self._workers.values()),
            drivers=tuple(driver.view for driver in self._drivers.values()),
            closing=self._closing,
            drained=orders.drained,
            leave_by_s=orders.leave_by_s if self._leave_by_s is None else self._leave_by_s,
        )

    async def _decide(self, orders: Orders) -> float | None:
        for job in answerable(self._view(orders)):
            await self._open_proxy(job)
        decision = decide(self._view(orders), self._clock.monotonic_s())  # workers went on while those opened
        for action in decision.actions:
            await self._apply(action)
        if await self._start_recorded():
            return decision.wake_at_s
        return self._retry_s(decision.wake_at_s)

    def _retry_s(self, wake_at_s: float | None) -> float:
        """When to look again at what could not be done, `wake_at_s` at the latest."""
        retry_s = self._clock.monotonic_s() + RETRY_S
        return retry_s if wake_at_s is None else min(retry_s, wake_at_s)

    async def _wait(self, wake_at_s: float | None) -> None:
        timeout_s = None if wake_at_s is None else max(0.0, wake_at_s - self._clock.monotonic_s())
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return  # it is time to decide again

    # ---- actions ------------------------------------------------------------------------------------------------

    async def _apply(self, action: Action) -> None:
        match action:
            case StartWorker(job, planned, reason):
                logger.info("job %s: start %s in slot %d (%s)", job, planned.worker, planned.slot, reason)
                await self._start_worker(action)
            case LetLeave(job, worker, leave_by_s, reason):
                logger.info("job %s: %s is to leave (%s)", job, worker, reason)
                self._workers[job, worker].let_leave(leave_by_s)
            case StopWorker(job, worker, timeout_s, reason):
                logger.info("job %s: stop %s (%s)", job, worker, reason)
                self._workers[job, worker].stop(timeout_s)
            case AskBack(job, worker):
                generation = self._workers[job, worker].asked_back(self._clock.monotonic_s())
                if generation is not None:
                    self._tell(job, worker, Abort(generation=generation))
            case GiveUp(job, worker, reason):
                self._workers[job, worker].give_up(reason)
            case StartDriver(job, reason):
                logger.info("job %s: start the driver (%s)", job, reason)
                self._driver_of(job).start(self._launcher.driver(job))
            case KillDriver(job, reason):
                logger.warning("job %s: kill the driver (%s)", job, reason)
                self._drivers[job].kill()
            case StopDriver(job, timeout_s, reason):
                logger.info("job %s: stop the driver (%s)", job, reason)
                self._drivers[job].stop(timeout_s)

    async def _start_worker(self, action: StartWorker) -> None:
        spec = self._spec_of(action.job)
        held_dir = None
        if spec.kind is not JobKind.TEACHER:  # which has no world, and no state to hold
            await self._open_proxy(action.job)
            held_dir = await asyncio.to_thread(self._held.folder, spec.job, spec.submitted_at)
        if self._closing:
            return  # meanwhile; `close` could not stop what was not there
        launch = self._launcher.worker(spec, action.planned, held_dir)
        worker = Worker(
            *(self._node, spec, action.planned, launch, self._clock.wall_s()),
            changed=self._worker_changed,
            drain=self._link.drained,
        )
        self._workers[action.job, worker.name] = worker
        self._worker_changed(worker)

    async def _start_recorded(self) -> bool:
        """Start what was decided, once its record is written; False if some could not be written yet.

        A JobClient that is killed in between, and its next life, start none of them a second time.
        """
        fresh = [worker for worker in self._workers.values() if worker.fresh]
        if not fresh:
            return True
        try:
            await self._reporting.flush()
        except CoordError as error:
            logger.warning("%d workers start when their records are written: %s", len(fresh), error)
            return False
        for worker in fresh:
            if worker.fresh:  # nobody stopped it meanwhile
                worker.start(self._clock.monotonic_s())
        return True

    async def _open_proxy(self, job: str) -> None:
        await self._proxies.open(job, self._spec_of(job).submitted_at, self._snapshot.drivers.get(job))

    def _driver_of(self, job: str) -> Driver:
        """The job's driver, a new one if the one that is known was another submission's."""
        submitted_at = self._spec_of(job).submitted_at
        driver = self._drivers.get(job)
        if driver is None or driver.view.submitted_at != submitted_at:
            driver = self._drivers[job] = Driver(job, submitted_at, self._clock, self._wake.set)
        return driver

    def _spec_of(self, job: str) -> JobSpec:
        spec = self._snapshot.jobs[job].spec
        assert spec is not None, "nothing is started without a spec"
        return spec

    def _logs_in_use(self) -> list[Path]:
        drivers = ((job, DRIVER_LOG) for job, driver in self._drivers.items() if driver.view.running)
        return [log_path(self._log_dir, job, name) for job, name in (*self._workers, *drivers)]

    def _alive(self) -> bool:
        return any(not w.gone for w in self._workers.values()) or any(d.view.running for d in self._drivers.values())

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        for driver in self._drivers.values():
            driver.kill()

    async def _forget(self) -> None:
        """Drop workers that are gone and recorded so, and what is kept for jobs that have ended."""
        jobs = self._snapshot.jobs
        for name, worker in list(self._workers.items()):
            waits = self._reporting.waits(worker.job, worker.name)
            if worker.gone and worker.is_recorded(jobs.get(worker.job), waits):
                del self._workers[name]
        going_on = {(v.spec.job, v.spec.submitted_at) for v in jobs.values() if v.spec is not None and not v.ended}
        needed = going_on | {(worker.job, worker.submitted_at) for worker in self._workers.values()}
        for job_name in await self._proxies.keep(needed):
            if job_name not in jobs:
                self._reporting.forget(job_name)
        self._held.keep(needed)
        for job, driver in list(self._drivers.items()):
            if (job, driver.view.submitted_at) not in needed and not driver.view.running:
                del self._drivers[job]

    # ---- workers ------------------------------------------------------------------------------------------------

    def _token_of(self, job: str, worker: str) -> str | None:
        known = self._workers.get((job, worker))
        return None if known is None or known.exited else self._key.worker_token(job, worker)

    def _tell(self, job: str, worker: str, message: AgentMessage) -> None:
        known = self._workers.get((job, worker))
        if known is not None:
            known.told(message, self._clock.monotonic_s())
            if isinstance(message, Abort):
                self._wake.set()  # it has a deadline now
        if not self._link.send(job, worker, message):
            logger.info("job %s: %s is not connected; %s is not delivered", job, worker, type(message).__name__)

    def _heard(self, job: str, name: str, message: WorkerMessage) -> None:
        worker = self._workers.get((job, name))
        proxy = None if worker is None else self._proxies.of(job, worker.submitted_at)
        if worker is None or proxy is None or worker.exited:
            return
        worker.heard(message, self._clock.monotonic_s())
        match message:
            case Gate(last_generation=last):
                proxy.worker_gate(name, last)
            case Running(generation=generation):
                proxy.worker_running(name, generation)
            case Finished():
                proxy.worker_finished(name)
            case Happened(kind=kind, text=text, fields=fields):
                before = self._snapshot.progress.get(job)
                text, fields = resized_after_restart(kind, text, fields, before, self._clock.wall_s())
                logger.info("job %s: %s", job, text)
                self._reporting.event((job, worker.submitted_at), kind, text, {**fields, "worker": name})
            case Report() if worker.rank == 0:
                self._reporting.report((job, worker.submitted_at), message, self._snapshot.progress.get(job))

    def _worker_changed(self, worker: Worker) -> None:
        """The record of a worker changed, or its slot is free."""
        self._wake.set()
        if worker.gone:
            return
        if worker.exited and (proxy := self._proxies.of(worker.job, worker.submitted_at)) is not None:
            proxy.worker_exited(worker.name, worker.exit_text)  # first: others wait for this
            if worker.rank == 0:
                self._reporting.flush_progress(worker.job)
        self._reporting.worker((worker.job, worker.submitted_at), worker.record)
