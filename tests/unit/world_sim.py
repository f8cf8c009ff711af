"""A whole job without processes: the real driver decisions and the real node state machines, with simulated workers.

Messages travel in order on one connection per node. Faults are methods: kill_worker, lose_node, hide_node,
crash_driver, disconnect. `settle` delivers everything and lets time pass until nothing changes; `check` holds the
invariants.
"""

from collections.abc import Callable
from functools import partial

from world_parts import Driver, DriverCrashed, Node, Worker, replace_plan, with_epoch

from edl_collective.coord.records import Plan, PlannedWorker, Rendezvous
from edl_collective.driver import world
from edl_collective.driver.state import (
    Disconnected,
    NodesRead,
    PlanRead,
    RecordWritten,
    Said,
    State,
    WriteConflict,
    observe,
)
from edl_collective.messages import Abort, Assigned, Interrupt, Leave
from jobclient.job_proxy import Answer, ToDriver, ToWorker


class Cluster:
    """A job on some nodes; `crash_at` counts effects of all drivers: before that one the driver dies.

    `kills`: the JobClients kill who is in init when its generation is aborted; else only Horovod's time-out ends it.
    """

    def __init__(self, nodes: tuple[str, ...] = ("a", "b"), config: world.Config | None = None) -> None:
        self.config = config or world.Config()
        self.now_s = 0.0
        self.record, self.version = Rendezvous.EMPTY, 0
        self.history: dict[int, Rendezvous] = {0: Rendezvous.EMPTY}
        self.nodes = {name: Node(name, f"{name}-1") for name in nodes}
        self.workers: dict[str, Worker] = {}
        self.plan = Plan(revision=1, workers=(), driver_node=nodes[0], reason="start", next_worker=1, leader_epoch=1)
        self.effects = 0
        self.crash_at: set[int] = set()
        #: nodes that live but have lost their session with the store
        self.hidden: set[str] = set()
        self.kills = True
        #: there is a leader, which replaces the dead
        self.leads = True
        self.driver: Driver | None = None
        self.start_driver()

    # ---- the leader and the users ---------------------------------------------------------------------------------

    def scale(self, want: dict[str, int], reason: str = "scale") -> None:
        """Plan so many workers on each node: the lowest ids stay, new ones start."""
        number = self.plan.next_worker
        planned: list[PlannedWorker] = []
        for node, count in want.items():
            kept = [p for p in self.plan.workers if p.node == node and self.workers[p.worker].alive][:count]
            planned += kept
            for _ in range(count - len(kept) if node in self.nodes else 0):
                planned.append(PlannedWorker(f"w{number}", node, 0))
                self.workers[f"w{number}"] = Worker(f"w{number}", node)
                number += 1
        self.plan = replace_plan(self.plan, tuple(planned), number, reason)
        self._tell(PlanRead(self.plan))

    def add_spares(self, *nodes: str) -> None:
        """Plan one spare on each of `nodes`."""
        number = self.plan.next_worker
        new = tuple(PlannedWorker(f"w{number + i}", node, 0) for i, node in enumerate(nodes))
        self.workers.update({p.worker: Worker(p.worker, p.node) for p in new})
        spares = (*self.plan.spares, *new)
        self.plan = replace_plan(self.plan, self.plan.workers, number + len(new), "spares", spares)
        self._tell(PlanRead(self.plan))

    def adopt(self) -> None:
        """What the leader does about spares: those in the world are workers, the dead are dropped."""
        members = {m.worker for m in self.record.members}
        spares = [p for p in self.plan.spares if self.workers[p.worker].alive]
        seated = [p for p in spares if p.worker in members]
        waiting = [p for p in spares if p not in seated]
        workers = list(self.plan.workers)
        for i, planned in enumerate(workers):
            if seated and not (self.workers[planned.worker].alive and planned.worker in members):
                workers[i] = seated.pop(0)
        if (tuple(workers), tuple(waiting)) != (self.plan.workers, self.plan.spares):
            self.plan = replace_plan(self.plan, tuple(workers), self.plan.next_worker, "adopt", tuple(waiting))
            self._tell(PlanRead(self.plan))

    def replace_dead(self) -> None:
        """What the leader does about workers that died: new ones in their slots, on nodes that live."""
        self.adopt()
        want: dict[str, int] = {}
        for p in self.plan.workers:
            if p.node in self.nodes:
                want[p.node] = want.get(p.node, 0) + 1
        if any(not self.workers[p.worker].alive or p.node not in self.nodes for p in self.plan.workers):
            self.scale(want, "replace")

    # ---- faults ---------------------------------------------------------------------------------------------------

    def kill_worker(self, name: str, detail: str = "killed by SIGKILL") -> None:
        worker = self.workers[name]
        if worker.alive:
            worker.state = "dead"
            self._act(worker.node, self.nodes[worker.node].world.exited(name, detail))

    def lose_node(self, name: str) -> None:
        del self.nodes[name]
        self.hidden.discard(name)
        for worker in self.workers.values():
            if worker.node == name and worker.alive:
                worker.state = "dead"
        self._tell(Disconnected(name))
        self._tell(NodesRead(self.live_nodes()))

    def return_node(self, name: str) -> None:
        self.nodes[name] = Node(name, f"{name}-{self.version}-{self.effects}")
        self._tell(NodesRead(self.live_nodes()))

    def hide_node(self, name: str) -> None:
        """The session of a node that is well ends: it is missing in the store."""
        self.hidden.add(name)
        self._tell(NodesRead(self.live_nodes()))

    def show_nodes(self) -> None:
        """All that live have registered again."""
        self.hidden.clear()
        self._tell(NodesRead(self.live_nodes()))

    def disconnect(self, name: str) -> None:
        node = self.nodes[name]
        node.connected = False
        node.to_driver.clear()
        node.from_driver.clear()
        self._tell(Disconnected(name))

    def crash_driver(self) -> None:
        self.driver = None
        for node in self.nodes.values():
            node.connected = False
            node.to_driver.clear()
            node.from_driver.clear()

    def start_driver(self) -> None:
        """A successor: takes the record with the next epoch, knows nothing else."""
        epoch = self.record.epoch + 1
        self._write(with_epoch(self.record, epoch))
        self.driver = Driver(State(epoch=epoch, record=self.record, version=self.version))
        self._tell(NodesRead(self.live_nodes()))
        self._tell(PlanRead(self.plan))

    def live_nodes(self) -> dict[str, str]:
        return {name: node.incarnation for name, node in self.nodes.items() if name not in self.hidden}

    # ---- turns ----------------------------------------------------------------------------------------------------

    def choices(self) -> list[Callable[[], None]]:
        """Every single thing that could happen next, faults and time apart."""
        found: list[Callable[[], None]] = []
        if self.driver is None:
            found.append(self.start_driver)
        for name, node in self.nodes.items():
            if not node.proxy and self._has_reason(name):
                found.append(partial(self._open_proxy, name))
            if node.proxy and not node.connected and self.driver is not None:
                found.append(partial(self._connect, name))
            if node.to_driver:
                found.append(partial(self._to_driver, name))
            if node.from_driver:
                found.append(partial(self._from_driver, name))
        for worker in self.workers.values():
            if worker.state == "starting" and self.nodes[worker.node].proxy:
                found.append(partial(self._gate, worker))
            if worker.state == "init" and not worker.stopped and self._all_assigned(worker.generation):
                found.append(partial(self._runs, worker))
            elif worker.state == "init" and worker.refused:
                found.append(partial(self.kill_worker, worker.name, "killed by SIGABRT"))
        return found

    def settle(self) -> None:
        """Let everything happen that can happen without further faults."""
        for _ in range(10_000):
            found = self.choices()
            if found:
                found[0]()
                continue
            if self.driver is not None and self.driver.wake_at is not None:
                self.now_s = max(self.now_s, self.driver.wake_at)
                self._turn()
                continue
            before = self.plan.revision
            if self.leads:
                self.replace_dead()
            if self.plan.revision == before and not self.choices():
                return
        raise AssertionError(f"no end: {self.driver and self.driver.reason}")

    def _has_reason(self, name: str) -> bool:
        """As jobclient.decide has it: to start a worker, or because the world has a member here."""
        starts = any(w.node == name and w.alive for w in self.workers.values())
        return starts or any(m.node == name for m in self.record.members)

    def _open_proxy(self, name: str) -> None:
        self.nodes[name].proxy = True

    def _connect(self, name: str) -> None:
        node = self.nodes[name]
        node.connected = True
        node.to_driver.append(node.world.hello())

    def _to_driver(self, name: str) -> None:
        self._tell(Said(name, self.nodes[name].to_driver.popleft()))

    def _from_driver(self, name: str) -> None:
        self._act(name, self.nodes[name].world.heard(self.nodes[name].from_driver.popleft()))

    def _gate(self, worker: Worker) -> None:
        worker.state = "gate"
        self._act(worker.node, self.nodes[worker.node].world.gate(worker.name, worker.generation))

    def _runs(self, worker: Worker) -> None:
        worker.state = "running"
        self.nodes[worker.node].world.drop(worker.name)
        self._act(worker.node, self.nodes[worker.node].world.running(worker.name, worker.generation))

    def _all_assigned(self, generation: int) -> bool:
        """All have got their place, and nobody died; who is through may have left again."""
        members = [self.workers[m.worker] for m in self.history[generation].members]
        return all(w.generation >= generation and (w.state != "dead" or w.finished) for w in members)

    def finish(self, name: str) -> None:
        """The training function of a running worker returns."""
        worker = self.workers[name]
        worker.finished = True
        self._act(worker.node, self.nodes[worker.node].world.finished(name))

    def leave_by_itself(self, name: str) -> None:
        """A collective failed in a running worker though nobody died: it comes to the gate."""
        self._gate(self.workers[name])

    def _act(self, name: str, actions: list) -> None:  # type: ignore[type-arg]
        node = self.nodes[name]
        for action in actions:
            match action:
                case ToDriver(message) if node.connected:
                    node.to_driver.append(message)
                case ToWorker(worker, message):
                    self._hear(self.workers[worker], message)
                case Answer(worker, None):
                    self.workers[worker].refused = True

    def _hear(self, worker: Worker, message: object) -> None:
        match message:
            case Assigned():
                assert worker.state == "gate"
                expected = self.history[message.generation]
                member = next(m for m in expected.members if m.worker == worker.name)
                assert (message.rank, message.size) == (member.rank, len(expected.members))
                worker.state, worker.generation, worker.place = "init", message.generation, message
                asked = self.nodes[worker.node].world.get(worker.name, message.generation, "global", "x", worker.name)
                worker.refused = asked is None
            case Leave():
                assert worker.state == "gate"
                worker.state = "left"
                self._act(worker.node, self.nodes[worker.node].world.exited(worker.name, "left"))
            case Abort(generation=g) if worker.stopped and worker.generation <= g:
                self.kill_worker(worker.name, "did not come back")
            case Interrupt() if worker.stopped:
                pass
            case Interrupt(generation=g) if worker.state == "running" and worker.generation <= g:
                self._gate(worker)
            case Abort(generation=g) if worker.state == "running" and worker.generation <= g:
                self._gate(worker)
            case Abort(generation=g) if worker.state == "init" and worker.generation <= g and self.kills:
                self.kill_worker(worker.name)

    # ---- the driver -----------------------------------------------------------------------------------------------

    def _tell(self, event: object) -> None:
        if self.driver is not None:
            self.driver.state = observe(self.driver.state, event)  # type: ignore[arg-type]
            self._turn()

    def _turn(self) -> None:
        driver = self.driver
        assert driver is not None
        decision = world.decide(driver.state, self.now_s, self.config)
        driver.state, driver.reason, driver.wake_at = decision.state, decision.reason, decision.wake_at
        try:
            for effect in decision.effects:
                self._apply(effect)
        except DriverCrashed:
            self.crash_driver()

    def _apply(self, effect: world.Effect) -> None:
        assert self.driver is not None
        self.effects += 1
        if self.effects in self.crash_at:
            raise DriverCrashed
        match effect:
            case world.Send(node, message):
                if node in self.nodes and self.nodes[node].connected:
                    self.nodes[node].from_driver.append(message)
            case world.WriteRecord(record, version):
                if version != self.version:
                    self._tell(WriteConflict())
                    return
                self._form_check(record)
                self._write(record)
                self.effects += 1
                if self.effects in self.crash_at:
                    raise DriverCrashed
                self._tell(RecordWritten(self.version))

    def _write(self, record: Rendezvous) -> None:
        assert record.generation >= self.record.generation
        assert record.epoch >= self.record.epoch
        self.record = record
        self.version += 1
        self.history[record.generation] = record

    # ---- invariants -----------------------------------------------------------------------------------------------

    def _form_check(self, record: Rendezvous) -> None:
        assert record.generation == self.record.generation + 1
        assert len(record.members) <= max(len(self.plan.workers), len(self.driver.state.plan.workers))  # type: ignore[union-attr]
        assert len(record.members) >= self.config.min_np or self.driver.state.finished  # type: ignore[union-attr]
        assert [m.rank for m in record.members] == list(range(len(record.members)))
        for m in record.members:
            assert m.worker in self.driver.state.seen, "a world contains a lost worker"  # type: ignore[union-attr]
        before = [m.worker for m in self.record.members]
        survivors = [w for w in before if w in {m.worker for m in record.members}]
        if survivors:
            assert record.members[0].worker == survivors[0]
        for node in {m.node for m in record.members}:
            mine = [m.worker for m in record.members if m.node == node]
            assert [w for w in survivors if w in mine] == mine[: len([w for w in mine if w in survivors])]
        # no member of the world before may still be in it, unless it is cut off: no session, and silent for too long
        for name in before:
            worker = self.workers[name]
            cut_off = worker.node in self.hidden and worker.node not in self.driver.state.heard  # type: ignore[union-attr]
            assert worker.state in ("gate", "left", "dead") or worker.finished or cut_off, f"{name} is {worker.state}"

    def check(self) -> None:
        """Every live planned worker runs in the newest generation, and nobody else."""
        planned = {p.worker for p in self.plan.workers}
        assert {m.worker for m in self.record.members} == planned, self.driver and self.driver.reason
        spares = {p.worker for p in self.plan.spares}
        for name, worker in self.workers.items():
            if name in spares:
                assert (worker.state, worker.generation) in (("gate", 0), ("dead", 0)), (name, worker)
            elif name in planned:
                assert (worker.state, worker.generation) == ("running", self.record.generation), (name, worker)
            else:
                assert not worker.alive, (name, worker)


def members_of(cluster: Cluster) -> list[str]:
    return [m.worker for m in cluster.record.members]


def pass_time(cluster: Cluster) -> None:
    """Until the driver wants to decide again."""
    assert cluster.driver is not None
    assert cluster.driver.wake_at is not None
    cluster.now_s = max(cluster.now_s, cluster.driver.wake_at)
    cluster._turn()
