"""What the store holds at one moment, as typed values. [pure]

Invariant: a record that does not parse is never read as an empty one. It becomes a problem with a sentence, and what
it belongs to is left alone: a job with an unreadable record is not decided about, and keeps the slots it had.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from distill.listing import Listing
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
)

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

    @property
    def turn(self) -> tuple[int, float, str]:
        """Jobs are served in the order of this: the highest priority first, then the oldest."""
        spec = self.spec.value
        return -spec.priority, spec.submitted_at, spec.job


@dataclass(frozen=True, slots=True)
class Problem:
    """A path that does not hold what belongs there."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment."""

    #: live nodes; `draining` and `cordoned` are set for those that somebody drains or cordons, too
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    jobs: Mapping[str, Job] = field(default_factory=dict)
    leader: LeaderRecord | None = None
    problems: tuple[Problem, ...] = ()
    #: nodes that are there but whose record cannot be read: they get nothing new and lose nothing
    unreadable_nodes: frozenset[str] = frozenset()
    #: jobs that are left alone, with the slots that their readable records name
    unreadable_jobs: Mapping[str, frozenset[Slot]] = field(default_factory=dict)
    #: by node, whether it lives or not; cordons, too
    drains: Mapping[str, At[DrainRecord]] = field(default_factory=dict)
    #: nodes that are not there, but may only not have come back yet since ZooKeeper was out of our sight (`excuse`)
    awaited_nodes: frozenset[str] = frozenset()
    #: of the cluster, which belong to no job; oldest first
    events: tuple[StoredEvent, ...] = ()
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
