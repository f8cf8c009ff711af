"""The control loop of a JobServer: load, decide, apply, wait.

Invariants: only the leader writes, and every write of it carries the fence and the version that was read; a refused
write means "look again". While the session is suspended nothing is decided. Nothing is polled: the loop sleeps until
the store changes, the session changes, or the decision asked to be woken.
"""

import logging
import random
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import urlsplit

from distill.listing import Listing, listings
from edl_collective.coord.clock import Clock
from edl_collective.coord.errors import (
    CoordError,
    Disconnected,
    Exists,
    NotFound,
    NotLeader,
    RecordTooLarge,
    VersionConflict,
)
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import LeaderRecord, NodeRecord, Record, decode, encode
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.store import Create, Delete, Op, Session, Set, Store, Versioned
from jobserver.death_watch import DeathWatch, Endpoint
from jobserver.node_events import node_history
from jobserver.reading import Reading
from jobserver.reconcile import (
    Action,
    Decision,
    FillInSpec,
    ForgetEvent,
    ForgetWorker,
    ReconcileConfig,
    UpdateJob,
    reconcile,
)
from jobserver.sight import Sight
from jobserver.snapshot import Snapshot, excuse, with_services
from jobserver.wakes import Wakes

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.01
LAST_RETRY_S = 5.0
STOP_TIMEOUT_S = 10.0
LONGEST_REST_S = 0.2
SERVICES_EVERY_S = 0.5


class View:
    """The newest snapshot, shared by the loop and the API; any thread may load it.

    Services are looked at once in SERVICES_EVERY_S: all their teachers and students write that often, and nothing that
    is decided about them is urgent.
    """

    def __init__(
        self, mirror: Mirror, services: Mirror, paths: Paths, signer: SpecSigner, sight: Sight, clock: Clock
    ) -> None:
        self._mirror = mirror
        self._services_mirror = services
        self._clock = clock
        self._looked_s = -SERVICES_EVERY_S
        self._services: Mapping[str, Listing] = {}
        self._paths = paths
        self._sight = sight
        self._lock = threading.Lock()
        self._values: Mapping[str, Versioned] = {}
        self._snapshot = Snapshot()
        #: they ring when a new snapshot may differ; those of services only while somebody loads them
        self.wakes, self.service_wakes = Wakes(), Wakes()
        self._reading = Reading(paths, signer)
        #: nodes whose record this process took away because their JobClient had died
        self.buried: frozenset[str] = frozenset()

    @property
    def unsettled_s(self) -> float:
        """Seconds until a node that is not in the store is taken for lost; 0 if it is now."""
        return self._sight.unsettled_s

    def load(self, *, services: bool = False) -> Snapshot:
        """What the store holds now; reads and parses only after a change. Raises Disconnected.

        services: the caller needs them, whether or not a job of teachers does.
        """
        with self._lock:  # a Mirror is refreshed by one thread at a time
            values = self._mirror.refresh()
            changed = values is not self._values
            if changed:
                self._snapshot = self._reading.build(values)
                self._values = values
            serving = services or any(job.spec.value.service for job in self._snapshot.jobs.values())
            if (serving and self._look_at_services()) or changed:
                self._snapshot = with_services(self._snapshot, self._services)
            return excuse(self._snapshot, self.buried) if self._sight.unsettled_s else self._snapshot

    def refuses(self, path: str, data: bytes) -> bool:
        """Whether `data`, at `path`, is a spec of which nothing is run: not signed, or older than one that was seen."""
        with self._lock:
            return self._reading.newest.refuses(path, data)

    def deleted(self, path: str) -> None:
        """The spec at `path` was deleted: it does not come back, even if nobody looked meanwhile."""
        with self._lock:
            self._reading.newest.gone(path)

    def submission_s(self, path: str, now_s: float) -> float:
        """The wall time that a submission at `now_s` is to state."""
        with self._lock:
            return self._reading.newest.after(path, now_s)

    def _look_at_services(self) -> bool:
        """Whether they were looked at."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < SERVICES_EVERY_S:
            return False
        self.service_wakes.rung = False
        self._services = listings(self._services_mirror.refresh(), self._paths)
        self._looked_s = now_s
        return True


class Controller:
    """The loop; `run` on a thread of its own, or `start` and `stop`.

    session_timeout_s: of `store`, to be compared with that of the nodes. rest: called when nothing waits to be decided.
    """

    def __init__(
        self,
        store: Store,
        paths: Paths,
        leadership: Leadership,
        clock: Clock,
        config: ReconcileConfig,
        signer: SpecSigner,
        session_timeout_s: float = 0.0,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._signer = signer
        self._paths = paths
        self._leadership = leadership
        self._clock = clock
        self._config = config
        self._rest = rest
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._sight = Sight(store, clock, config.absence_timeout_s)
        # Services change all the time: who decides about them looks by the clock, and is not woken by them.
        wakes, service_wakes = Wakes(self._woken.set), Wakes()
        self._mirror = Mirror(store, paths.root, wakes.ring, frozenset({paths.services}))
        self._services = Mirror(store, paths.services, service_wakes.ring)
        self._thread = threading.Thread(target=self.run, name="edl-controller", daemon=True)
        self._watch = DeathWatch(self._woken.set)
        self._retry_s = FIRST_RETRY_S
        self._problems: tuple[str, ...] = ()
        self._awaited: frozenset[str] = frozenset()
        self._session_timeout_s = session_timeout_s
        self._shorter: frozenset[str] = frozenset()
        self.view = View(self._mirror, self._services, paths, signer, self._sight, clock)
        self.view.wakes, self.view.service_wakes = wakes, service_wakes
        #: why the last decision is as it is; "" while this server does not lead
        self.reason = ""
        #: what went wrong in the last turn of the loop, None if nothing did
        self.failure: str | None = None
        #: turns of the loop, and seconds in them
        self.turns, self.turn_s = 0, 0.0

    @property
    def epoch(self) -> int | None:
        """Epoch in which this server leads, None while it does not."""
        return self._leadership.epoch

    @property
    def problem_count(self) -> int:
        """Records that could not be read in the last turn, and what stopped it."""
        return len(self._problems) + (self.failure is not None)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the loop and let another server lead at once."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        self._mirror.close()
        self._services.close()
        self._sight.close()
        self._watch.close()
        if self._store.session is not Session.CONNECTED:
            return  # the session expires, and with it the lead
        try:
            self._leadership.resign()
        except CoordError as error:
            logger.warning("cannot resign, the session will expire instead: %s", error)

    def run(self) -> None:
        """Turn until stopped."""
        while not self._stopping.is_set():
            self._woken.clear()  # before loading: what changes from here on wakes the next turn
            began_s = self._clock.monotonic_s()
            timeout_s = self._turn()
            took_s = self._clock.monotonic_s() - began_s
            self.turns, self.turn_s = self.turns + 1, self.turn_s + took_s
            if not self._woken.is_set():
                self._rest()
            self._woken.wait(timeout_s)
            # Changes of a large cluster come by hundreds: half of the time is left to those who ask about it.
            self._stopping.wait(min(LONGEST_REST_S, took_s))

    def step(self) -> float | None:
        """Load, decide, apply once; returns after how many seconds to look again, None: when something changes."""
        if self._store.session is not Session.CONNECTED:
            self.reason = ""
            return None
        epoch = self._leadership.try_lead(self._dead_leader())
        snapshot = self.view.load()
        self._watch.follow(_watched(snapshot, epoch))
        if epoch is not None and self._bury_dead_nodes(snapshot):
            snapshot = self.view.load()
        self._show_problems(snapshot)
        if epoch is None:
            self.reason = ""
            return None
        now_s = self._clock.wall_s()
        self._show_awaited(snapshot)
        self._show_shorter_sessions(snapshot)
        decision = reconcile(snapshot, now_s, replace(self._config, leader_epoch=epoch))
        self._show_reason(decision, epoch)
        for action in decision.actions:
            self._apply(action)
        self._tell_of_nodes(snapshot, now_s)
        waits = [] if decision.wake_at is None else [max(0.0, decision.wake_at - now_s)]
        if snapshot.awaited_nodes:
            waits.append(self._sight.unsettled_s)
        return min(waits, default=None)

    def _turn(self) -> float | None:
        """One step, with every failure turned into a time to wait."""
        try:
            timeout_s = self.step()
        except (VersionConflict, Exists, NotFound, NotLeader) as error:
            logger.info("look again: %s", error)
            self._leadership.doubt()
        except Disconnected as error:
            self._fail(error)
        except Exception as error:  # the loop outlives a bug in a rule; health shows it
            logger.exception("the decision failed")
            self._fail(error)
        else:
            self.failure = None
            self._retry_s = FIRST_RETRY_S
            return timeout_s
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        return self._retry_s * random.uniform(0.5, 1.0)

    def _fail(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self.failure:
            logger.warning("%s", text)
        self.failure = text

    def _dead_leader(self) -> LeaderRecord | None:
        return next((name for name in self._watch.dead if isinstance(name, LeaderRecord)), None)

    def _bury_dead_nodes(self, snapshot: Snapshot) -> bool:
        """Take away the records of nodes whose JobClient has died, as the end of their sessions would; whether any.

        So everybody learns of it in the same way and at once. A JobClient that lives, against all evidence, registers
        again.
        """
        dead = {name for name in self._watch.dead if isinstance(name, _NodeLife)}
        self.view.buried = (self.view.buried | {life.node for life in dead}) - snapshot.nodes.keys()
        found = [life for life in dead if life in map(_life, snapshot.nodes.values())]
        self.view.buried |= {life.node for life in found}
        for life in found:
            path = self._paths.node(life.node)
            there = self._store.get(path)
            if there is not None and _life(decode(there.data, NodeRecord, path)) == life:
                logger.warning("the JobClient of node %s has died", life.node)
                self._store.transact([self._leadership.fence(), Delete(path, there.version)])
            self._watch.forget(life)  # the same life may be back before anybody sees that it was away
        return bool(found)

    def _apply(self, action: Action) -> None:
        match action:
            case UpdateJob():
                self._update(action)
            case FillInSpec():
                path = self._paths.spec(action.job)
                data = self._signer.sign(path, action.spec, action.version + 1)  # what it was made from was signed
                self._store.transact([self._leadership.fence(), Set(path, data, action.version)])
            case ForgetWorker():
                path = self._paths.worker(action.job, action.worker)
                self._store.transact([self._leadership.fence(), Delete(path, action.version)])
            case ForgetEvent():
                path = f"{self._paths.events(action.job)}/{action.event}"
                self._store.transact([self._leadership.fence(), Delete(path, action.version)])

    def _update(self, action: UpdateJob) -> None:
        """Plan and status in one transaction; then the events, which tell of it and decide nothing."""
        ops: list[Op] = [self._leadership.fence()]
        try:
            if action.plan is not None:
                ops.append(_write(self._paths.plan(action.job), action.plan, action.plan_version))
            ops.append(_write(self._paths.status(action.job), action.status, action.status_version))
        except RecordTooLarge as error:  # only this job is stuck, the others go on
            self._fail(error)
            return
        self._store.transact(ops)
        if action.plan is not None:
            logger.info("job %s plan %d: %s", action.job, action.plan.revision, action.plan.reason)
        for event in action.events:
            self._store.append(self._paths.event_prefix(action.job), encode(event))

    def _tell_of_nodes(self, snapshot: Snapshot, now_s: float) -> None:
        history = node_history(snapshot, now_s)
        for event in history.forget:
            path = f"{self._paths.cluster_events}/{event.name}"
            self._store.transact([self._leadership.fence(), Delete(path, event.version)])
        for told in history.tell:
            logger.warning("%s", told.text)
            self._store.append(self._paths.cluster_event_prefix, encode(told))

    def _show_reason(self, decision: Decision, epoch: int) -> None:
        if decision.reason != self.reason:
            logger.info("epoch %d: %s", epoch, decision.reason)
        self.reason = decision.reason

    def _show_awaited(self, snapshot: Snapshot) -> None:
        if snapshot.awaited_nodes - self._awaited:
            names, wait_s = ", ".join(sorted(snapshot.awaited_nodes)), self._sight.unsettled_s
            logger.info("nodes that may come back are waited for, at most %.1f s: %s", wait_s, names)
        self._awaited = snapshot.awaited_nodes

    def _show_shorter_sessions(self, snapshot: Snapshot) -> None:
        """An outage that ends the session of a node must not pass us by: its absence would be taken for its death."""
        own_s = self._session_timeout_s
        timeouts_s = {node.node: node.session_timeout_s for node in snapshot.nodes.values()}
        shorter = {name: seconds for name, seconds in timeouts_s.items() if seconds is not None and seconds < own_s}
        if shorter.keys() - self._shorter:
            names = ", ".join(f"{name} ({seconds:g} s)" for name, seconds in sorted(shorter.items()))
            logger.warning(
                "the ZooKeeper session of this JobServer lasts longer (%g s) than that of node %s: after an outage "
                "that ends theirs alone, nodes that are well are taken for dead; start the JobServers with a "
                "--session-timeout that is at most that of each JobClient",
                own_s,
                names,
            )
        self._shorter = frozenset(shorter)

    def _show_problems(self, snapshot: Snapshot) -> None:
        texts = tuple(problem.text for problem in snapshot.problems)
        for text in texts:
            if text not in self._problems:
                logger.error("%s", text)
        self._problems = texts


class _NodeLife(NamedTuple):
    """One life of a node."""

    node: str
    incarnation: str


def _life(record: NodeRecord) -> _NodeLife:
    return _NodeLife(record.node, record.incarnation)


def _watched(snapshot: Snapshot, epoch: int | None) -> dict[Hashable, Endpoint]:
    """Whose death matters to us: that of the JobClients while we lead, else that of the leader."""
    if epoch is not None:
        return {_life(node): Endpoint(node.address, node.port) for node in snapshot.nodes.values()}
    if snapshot.leader is None:
        return {}
    url = urlsplit(snapshot.leader.api_url)
    return {snapshot.leader: Endpoint(url.hostname, url.port)} if url.hostname and url.port else {}


def _write(path: str, record: Record, version: int | None) -> Op:
    data = encode(record, path)
    return Create(path, data) if version is None else Set(path, data, version)
