"""What the store holds at one moment, as typed values. [pure]

Invariant: a record that does not parse is never read as an empty one. It becomes a problem with a sentence, and what
it belongs to is left alone: a job with an unreadable record is not decided about, and keeps the slots it had.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from msgspec import structs

from distill.listing import Listing
from edl_collective.coord.errors import RecordError
from edl_collective.coord.paths import Key, Paths
from edl_collective.coord.records import (
    DrainRecord,
    DriverRecord,
    JobSpec,
    JobStatus,
    LeaderRecord,
    NodeRecord,
    Plan,
    Progress,
    Record,
    Rendezvous,
    WorkerRecord,
    decode,
)
from edl_collective.coord.store import Versioned

R = TypeVar("R", bound=Record)


class Slot(NamedTuple):
    """One slot of one node."""

    node: str
    slot: int


@dataclass(frozen=True, slots=True)
class At(Generic[R]):
    """A record with the version that a conditional write must name."""

    value: R
    version: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event as it lies in the store; decoded only by those who show it."""

    name: str
    data: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Job:
    """Everything known of one readable job."""

    spec: At[JobSpec]
    plan: At[Plan] | None = None
    status: At[JobStatus] | None = None
    progress: Progress | None = None
    driver: DriverRecord | None = None
    rendezvous: Rendezvous = Rendezvous.EMPTY
    workers: Mapping[str, At[WorkerRecord]] = field(default_factory=dict)
    #: oldest first
    events: tuple[StoredEvent, ...] = ()
    #: of a job of teachers: the service that they serve, as last looked at
    fleet: Listing = field(default_factory=Listing)

    @property
    def name(self) -> str:
        return self.spec.value.job


@dataclass(frozen=True, slots=True)
class Problem:
    """A path that does not hold what belongs there."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment."""

    #: live nodes; `draining` is set for those that somebody drains, too
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    jobs: Mapping[str, Job] = field(default_factory=dict)
    leader: LeaderRecord | None = None
    problems: tuple[Problem, ...] = ()
    #: nodes that are there but whose record cannot be read: they get nothing new and lose nothing
    unreadable_nodes: frozenset[str] = frozenset()
    #: jobs that are left alone, with the slots that their readable records name
    unreadable_jobs: Mapping[str, frozenset[Slot]] = field(default_factory=dict)
    #: by node, whether it lives or not
    drains: Mapping[str, At[DrainRecord]] = field(default_factory=dict)
    #: nodes that are not there, but may only not have come back yet since ZooKeeper was out of our sight (`excuse`)
    awaited_nodes: frozenset[str] = frozenset()
    #: services by name, as last looked at (`with_services`)
    services: Mapping[str, Listing] = field(default_factory=dict)

    @property
    def unknown_nodes(self) -> frozenset[str]:
        """Nodes of which nothing can be said: they keep who they have and get nobody."""
        return self.unreadable_nodes | self.awaited_nodes


def with_services(snapshot: Snapshot, services: Mapping[str, Listing]) -> Snapshot:
    """`snapshot` with what its jobs of teachers serve."""
    jobs = {
        name: replace(job, fleet=services.get(job.spec.value.service, Listing())) if job.spec.value.service else job
        for name, job in snapshot.jobs.items()
    }
    return replace(snapshot, jobs=jobs, services=services)


def excuse(snapshot: Snapshot, but: Set[str] = frozenset()) -> Snapshot:
    """`snapshot` as it is to be judged while absence means nothing: whoever jobs know and is not there is awaited.

    but: nodes that have died for certain.
    """
    absent = _of_jobs(snapshot) - snapshot.nodes.keys() - snapshot.unreadable_nodes - but
    return replace(snapshot, awaited_nodes=frozenset(absent))


def knows(snapshot: Snapshot, node: str) -> bool:
    """Whether `node` is there, or a job or a drain still names it."""
    return node in {*snapshot.nodes, *snapshot.unreadable_nodes, *snapshot.drains, *_of_jobs(snapshot)}


def _of_jobs(snapshot: Snapshot) -> set[str]:
    """The nodes that readable records of jobs name."""
    known: set[str | None] = set()
    for job in snapshot.jobs.values():
        known |= {at.value.node for at in job.workers.values()}
        if job.plan is not None:
            known |= {job.plan.value.driver_node, *(w.node for w in job.plan.value.everybody)}
    return {name for name in known if name is not None}


_JOB_TYPES: dict[str, type[Record]] = {
    "spec": JobSpec,
    "plan": Plan,
    "status": JobStatus,
    "progress": Progress,
    "driver": DriverRecord,
    "rendezvous": Rendezvous,
}


class _JobParts:
    """The records of one job while they are collected."""

    def __init__(self) -> None:
        self.records: dict[str, At[Record]] = {}
        self.workers: dict[str, At[WorkerRecord]] = {}
        self.events: list[StoredEvent] = []
        self.problems: list[Problem] = []

    def add(self, key: Key, path: str, found: Versioned) -> None:
        if key.event is not None:
            self.events.append(StoredEvent(key.event, found.data, found.version))
            return
        try:
            if key.worker is not None:
                self.workers[key.worker] = At(decode(found.data, WorkerRecord, path), found.version)
            else:
                self.records[key.kind] = At(decode(found.data, _JOB_TYPES[key.kind], path), found.version)
        except RecordError as error:
            self.problems.append(Problem(path, str(error)))

    def get(self, kind: str, record_type: type[R]) -> At[R] | None:
        at = self.records.get(kind)
        if at is None:
            return None
        assert isinstance(at.value, record_type)
        return At(at.value, at.version)

    def value(self, kind: str, record_type: type[R]) -> R | None:
        at = self.get(kind, record_type)
        return None if at is None else at.value

    def job(self, spec: At[JobSpec]) -> Job:
        return Job(
            spec=spec,
            plan=self.get("plan", Plan),
            status=self.get("status", JobStatus),
            progress=self.value("progress", Progress),
            driver=self.value("driver", DriverRecord),
            rendezvous=self.value("rendezvous", Rendezvous) or Rendezvous.EMPTY,
            workers=self.workers,
            events=tuple(sorted(self.events, key=lambda event: event.name)),
        )

    def slots(self) -> frozenset[Slot]:
        plan = self.value("plan", Plan)
        planned = {Slot(w.node, w.slot) for w in plan.everybody} if plan else set()
        return frozenset(planned | {Slot(at.value.node, at.value.slot) for at in self.workers.values()})


def build(values: Mapping[str, Versioned], paths: Paths) -> Snapshot:
    """The snapshot of what a Mirror holds: `values` by path, below `paths.root`."""
    nodes: dict[str, NodeRecord] = {}
    unreadable_nodes: set[str] = set()
    drains: dict[str, At[DrainRecord]] = {}
    parts: dict[str, _JobParts] = {}
    problems: list[Problem] = []
    leader: LeaderRecord | None = None
    for path, key, found in _known(values, paths):
        try:
            if key.kind == "leader":
                leader = decode(found.data, LeaderRecord, path)
            elif key.kind == "drain" and key.node is not None:
                drains[key.node] = At(decode(found.data, DrainRecord, path), found.version)
            elif key.node is not None:
                nodes[key.node] = decode(found.data, NodeRecord, path)
            elif key.job is not None:
                parts.setdefault(key.job, _JobParts()).add(key, path, found)
        except RecordError as error:
            problems.append(Problem(path, str(error)))
            if key.kind == "node" and key.node is not None:
                unreadable_nodes.add(key.node)
    nodes.update({name: structs.replace(nodes[name], draining=True) for name in drains.keys() & nodes.keys()})
    jobs: dict[str, Job] = {}
    unreadable: dict[str, frozenset[Slot]] = {}
    for name, collected in parts.items():
        spec = collected.get("spec", JobSpec)
        wrong = collected.problems or _inconsistent(name, spec, paths)
        if spec is None or wrong:
            problems += wrong
            unreadable[name] = collected.slots()
        else:
            jobs[name] = collected.job(spec)
    return Snapshot(nodes, jobs, leader, tuple(problems), frozenset(unreadable_nodes), unreadable, drains)


def _known(values: Mapping[str, Versioned], paths: Paths) -> Iterator[tuple[str, Key, Versioned]]:
    for path in sorted(values):
        key = paths.parse(path)
        if key is not None:
            yield path, key, values[path]


def _inconsistent(name: str, spec: At[JobSpec] | None, paths: Paths) -> list[Problem]:
    path = paths.spec(name)
    if spec is None:
        return [Problem(path, f"job {name} has records but no spec: submit it again, or delete it")]
    if spec.value.job != name:
        return [Problem(path, f"the spec of job {name} names job {spec.value.job}")]
    return []
