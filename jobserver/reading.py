"""Snapshots one after the other, each from what a Mirror holds; only what has changed is parsed again. [pure]

Invariant: a snapshot is the same as the one that a new `Reading` would build from the same values. A value is known
again by being the same object, as a Mirror keeps it. A spec without the signature of the cluster key is not read, nor
is one that is older than another of its job which was read before; that alone a new `Reading` cannot know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from msgspec import structs

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
from edl_collective.coord.signing import NewestSpecs, SpecSigner
from edl_collective.coord.store import Versioned
from jobserver.snapshot import At, Job, Problem, Slot, Snapshot, StoredEvent

R = TypeVar("R", bound=Record)

_JOB_TYPES: dict[str, type[Record]] = {
    "spec": JobSpec,
    "plan": Plan,
    "status": JobStatus,
    "progress": Progress,
    "driver": DriverRecord,
    "rendezvous": Rendezvous,
}
_CLUSTER_TYPES: dict[str, type[Record]] = {"leader": LeaderRecord, "drain": DrainRecord, "node": NodeRecord}


@dataclass(frozen=True, slots=True)
class _Read:
    """What one path holds; `key` is None where nothing of ours belongs."""

    found: Versioned
    key: Key | None
    value: At[Record] | StoredEvent | None = None
    problem: Problem | None = None


class Reading:
    """Remembers what it has parsed. Not for several threads at a time."""

    def __init__(self, paths: Paths, signer: SpecSigner) -> None:
        self._paths = paths
        self._signer = signer
        self.newest = NewestSpecs(signer)
        self._read: dict[str, _Read] = {}
        #: what is read, by job; "" for what belongs to none
        self._parts: dict[str, dict[str, _Read]] = {}
        #: the jobs as they were built, and how those that cannot be are left
        self._jobs: dict[str, Job | _Unreadable] = {}

    def build(self, values: Mapping[str, Versioned]) -> Snapshot:
        """The snapshot of `values` by path, below the root of the paths."""
        changed = {self._drop(path) for path in self._read.keys() - values.keys()}
        for path, found in values.items():
            old = self._read.get(path)
            if old is None or old.found is not found:
                changed.add(self._take(path, found))
        for job in changed - {""}:
            self._build_job(job)
        return self._snapshot()

    def _drop(self, path: str) -> str:
        key = self._read.pop(path).key
        if key is not None and key.kind == "spec":
            self.newest.gone(path)
        job = _job(key)
        del self._parts[job][path]
        return job

    def _take(self, path: str, found: Versioned) -> str:
        read = self._read[path] = self._parse(path, found)
        job = _job(read.key)
        self._parts.setdefault(job, {})[path] = read
        return job

    def _parse(self, path: str, found: Versioned) -> _Read:
        key = self._paths.parse(path)
        if key is None:
            return _Read(found, None)
        if key.event is not None:
            return _Read(found, key, StoredEvent(key.event, found.data, found.version))
        record_type = WorkerRecord if key.worker is not None else (_JOB_TYPES | _CLUSTER_TYPES).get(key.kind)
        if record_type is None:
            return _Read(found, None)
        try:
            is_spec = record_type is JobSpec
            value = self.newest.read(path, found.data) if is_spec else decode(found.data, record_type, path)
            if isinstance(value, NodeRecord):
                self._signer.check_node(path, value)
            return _Read(found, key, At(value, found.version))
        except RecordError as error:
            return _Read(found, key, problem=Problem(path, str(error)))

    def _build_job(self, name: str) -> None:
        parts = self._parts.get(name)
        if not parts:
            self._parts.pop(name, None)
            self._jobs.pop(name, None)
            return
        spec = _at(parts, self._paths.spec(name), JobSpec)
        problems = [part.problem for _, part in sorted(parts.items()) if part.problem is not None]
        wrong = tuple(problems or _inconsistent(name, spec, self._paths))
        if spec is None or wrong:
            self._jobs[name] = _Unreadable(wrong, _slots(parts, _at(parts, self._paths.plan(name), Plan)))
        else:
            self._jobs[name] = _built(spec, parts, self._paths)

    def _snapshot(self) -> Snapshot:
        nodes: dict[str, NodeRecord] = {}
        drains: dict[str, At[DrainRecord]] = {}
        unreadable_nodes: set[str] = set()
        problems: list[Problem] = []
        events: list[StoredEvent] = []
        leader: LeaderRecord | None = None
        for _, part in sorted(self._parts.get("", {}).items()):
            key, at = part.key, part.value
            if part.problem is not None:
                problems.append(part.problem)
                if key is not None and key.kind == "node" and key.node is not None:
                    unreadable_nodes.add(key.node)
            elif isinstance(at, StoredEvent):
                events.append(at)
            elif key is not None and isinstance(at, At):
                match at.value:
                    case LeaderRecord():
                        leader = at.value
                    case DrainRecord() if key.node is not None:
                        drains[key.node] = At(at.value, at.version)
                    case NodeRecord() if key.node is not None:
                        nodes[key.node] = at.value
        for name in drains.keys() & nodes.keys():
            order = drains[name].value
            flag = {"cordoned": True} if order.cordon else {"draining": True}
            nodes[name] = structs.replace(nodes[name], **flag)
        names = sorted(self._jobs)
        jobs = {name: job for name in names if isinstance(job := self._jobs[name], Job)}
        left = {name: job for name in names if isinstance(job := self._jobs[name], _Unreadable)}
        problems += [problem for job in left.values() for problem in job.problems]
        slots = {name: job.slots for name, job in left.items()}
        unreadable = frozenset(unreadable_nodes)
        return Snapshot(nodes, jobs, leader, tuple(problems), unreadable, slots, drains, events=tuple(events))


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A job that is left alone."""

    problems: tuple[Problem, ...]
    slots: frozenset[Slot]


def _job(key: Key | None) -> str:
    return "" if key is None or key.job is None else key.job


def _at(parts: Mapping[str, _Read], path: str, record_type: type[R]) -> At[R] | None:
    part = parts.get(path)
    if part is None or not isinstance(part.value, At):
        return None
    value = part.value.value
    assert isinstance(value, record_type), f"{path} was parsed as {type(value).__name__}"
    return At(value, part.value.version)


def _built(spec: At[JobSpec], parts: Mapping[str, _Read], paths: Paths) -> Job:
    name = spec.value.job
    progress = _at(parts, paths.progress(name), Progress)
    driver = _at(parts, paths.driver(name), DriverRecord)
    world = _at(parts, paths.rendezvous(name), Rendezvous)
    return Job(
        spec=spec,
        plan=_at(parts, paths.plan(name), Plan),
        status=_at(parts, paths.status(name), JobStatus),
        progress=progress.value if progress else None,
        driver=driver.value if driver else None,
        rendezvous=world.value if world else Rendezvous.EMPTY,
        workers=_workers(parts),
        events=tuple(
            sorted((p.value for p in parts.values() if isinstance(p.value, StoredEvent)), key=lambda e: e.name)
        ),
    )


def _workers(parts: Mapping[str, _Read]) -> dict[str, At[WorkerRecord]]:
    found: dict[str, At[WorkerRecord]] = {}
    for _, part in sorted(parts.items()):
        if part.key is not None and part.key.worker is not None and isinstance(part.value, At):
            assert isinstance(part.value.value, WorkerRecord), "only worker records lie below a worker's path"
            found[part.key.worker] = At(part.value.value, part.value.version)
    return found


def _slots(parts: Mapping[str, _Read], plan: At[Plan] | None) -> frozenset[Slot]:
    planned = {Slot(w.node, w.slot) for w in plan.value.everybody} if plan else set()
    return frozenset(planned | {Slot(at.value.node, at.value.slot) for at in _workers(parts).values()})


def _inconsistent(name: str, spec: At[JobSpec] | None, paths: Paths) -> list[Problem]:
    path = paths.spec(name)
    if spec is None:
        return [Problem(path, f"job {name} has records but no spec: submit it again, or delete it")]
    if spec.value.job != name:
        return [Problem(path, f"the spec of job {name} names job {spec.value.job}")]
    return []
