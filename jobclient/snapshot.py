"""The jobs as a JobClient sees them, decoded from the records of the store. [pure]

A record that does not parse is None in its view and a sentence in `problems`: what rests on it is left as it is. So is
a spec without the signature of the cluster key, or one that is older than another of its job which was there: this is
where a JobClient refuses what a stranger wrote.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from edl_collective.coord.errors import RecordError
from edl_collective.coord.paths import Key, Paths
from edl_collective.coord.records import (
    DriverRecord,
    JobSpec,
    JobStatus,
    Plan,
    Progress,
    Record,
    Rendezvous,
    WorkerRecord,
    decode,
)
from edl_collective.coord.signing import NewestSpecs
from edl_collective.coord.store import Versioned
from jobclient.decide import JobView

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Snapshot:
    jobs: Mapping[str, JobView]
    #: where the driver of each job listens, of jobs that have one
    drivers: Mapping[str, DriverRecord]
    #: the last progress of each job that has trained
    progress: Mapping[str, Progress]
    problems: tuple[str, ...] = ()

    def submitted_at(self, job: str) -> float | None:
        """Which job of that name this is; None if there is none, or its spec does not parse."""
        spec = self.jobs[job].spec if job in self.jobs else None
        return None if spec is None else spec.submitted_at


def snapshot(values: Mapping[str, Versioned], paths: Paths, newest: NewestSpecs) -> Snapshot:
    """`values`: the records at and below Paths.jobs by path. `newest` learns of the specs in it."""
    found: dict[str, dict[Key, tuple[str, bytes]]] = defaultdict(dict)
    for path, value in values.items():
        key = paths.parse(path)
        if key is not None and key.job is not None:
            found[key.job][key] = (path, value.data)
    newest.only(path for path in values if path.endswith("/spec"))
    problems: list[str] = []
    jobs: dict[str, JobView] = {}
    drivers: dict[str, DriverRecord] = {}
    progress: dict[str, Progress] = {}
    for job, records in found.items():
        jobs[job] = JobView(
            spec=_spec(records.get(Key("spec", job=job)), newest, problems),
            plan=_one(records.get(Key("plan", job=job)), Plan, problems),
            status=_one(records.get(Key("status", job=job)), JobStatus, problems),
            rendezvous=_one(records.get(Key("rendezvous", job=job)), Rendezvous, problems),
            workers=_workers(records.items(), problems),
        )
        driver = _one(records.get(Key("driver", job=job)), DriverRecord, problems)
        if driver is not None:
            drivers[job] = driver
        last = _one(records.get(Key("progress", job=job)), Progress, problems)
        if last is not None:
            progress[job] = last
    return Snapshot(jobs, drivers, progress, tuple(problems))


def _spec(entry: tuple[str, bytes] | None, newest: NewestSpecs, problems: list[str]) -> JobSpec | None:
    if entry is None:
        return None
    try:
        return newest.read(*entry)
    except RecordError as error:
        problems.append(str(error))
        return None


def _workers(records: Iterable[tuple[Key, tuple[str, bytes]]], problems: list[str]) -> dict[str, WorkerRecord]:
    workers = {}
    for key, entry in records:
        if key.kind == "worker" and key.worker is not None:
            record = _one(entry, WorkerRecord, problems)
            if record is not None:
                workers[key.worker] = record
    return workers


def _one(entry: tuple[str, bytes] | None, record_type: type[R], problems: list[str]) -> R | None:
    if entry is None:
        return None
    path, data = entry
    try:
        return decode(data, record_type, path)
    except RecordError as error:
        problems.append(str(error))
        return None
