"""What a JobServer tells Prometheus: the cluster, jobs, services, their teachers and students, and itself. [pure]

Names carry their unit; what is not known has no sample. All servers tell the same of the cluster, since all read the
same records: take it from one of them, or the maximum. What begins with edl_server_ is of the server that is asked.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from distill.exposition import Sample, family
from distill.listing import Listing
from distill.records import StudentRecord, TeacherRecord
from edl_collective.coord.records import Phase
from jobserver.api_models import job_row, queue
from jobserver.goodput import goodput
from jobserver.service_rows import service_row
from jobserver.snapshot import Job, Snapshot

_JOB = (
    ("edl_job_workers", "gauge", "workers in the world, or teachers that serve", "world_size"),
    ("edl_job_planned_workers", "gauge", "workers that are planned", "workers"),
    ("edl_job_completed_epochs", "gauge", "completed epochs", "epoch"),
    ("edl_job_completed_steps", "gauge", "completed steps", "step"),
    ("edl_job_samples_per_second", "gauge", "samples a second of the epoch", "samples_per_s"),
    (
        "edl_job_teacher_wait_seconds_per_step",
        "gauge",
        "seconds that each step of the epoch waited for teachers",
        "teacher_wait_s_per_step",
    ),
    ("edl_job_loss", "gauge", "loss, as the script reports it", "loss"),
    ("edl_job_accuracy", "gauge", "accuracy, as the script reports it", "accuracy"),
    ("edl_job_priority", "gauge", "its priority", "priority"),
)
_SERVICE = (
    ("edl_service_teachers", "teachers that are listed", "teachers"),
    ("edl_service_draining_teachers", "of these, teachers that leave", "draining"),
    ("edl_service_students", "students that read", "students"),
    ("edl_service_rate_samples_per_second", "samples a second that the teachers can answer", "rate"),
    ("edl_service_answered_samples_per_second", "samples a second that they answer", "answered_rate"),
    ("edl_service_demand_samples_per_second", "samples a second that the students could use", "demand"),
    ("edl_service_queue_requests", "requests that wait at the teachers", "queue"),
    ("edl_service_starved_ratio", "part of their time that the students wait for teachers", "starved"),
)


@dataclass(frozen=True, slots=True)
class ServerSight:
    """One JobServer as it sees itself; counts are since its start."""

    leading: bool
    connected: bool
    problems: int
    #: of its loop, and seconds in them
    turns: int
    turn_s: float
    streams: int
    #: by HTTP status
    answers: Mapping[int, int]


def server_lines(sight: ServerSight) -> Iterator[str]:
    """Lines of the text format about the server that is asked."""
    for name, kind, text, value in (
        ("leading", "gauge", "1 for the server that decides", int(sight.leading)),
        ("zookeeper_connected", "gauge", "1 while its session lives", int(sight.connected)),
        ("problems", "gauge", "records that it cannot read, and what stops it", sight.problems),
        ("turns_total", "counter", "looks at the cluster, each with what it decided and wrote", sight.turns),
        ("turn_seconds_total", "counter", "seconds in these", sight.turn_s),
        ("streams", "gauge", "open event streams", sight.streams),
    ):
        yield from family(f"edl_server_{name}", kind, text, [({}, value)])
    answers = [({"status": str(status)}, float(count)) for status, count in sorted(sight.answers.items())]
    yield from family("edl_server_answers_total", "counter", "answers of its HTTP interface, by status", answers)


def cluster_lines(snapshot: Snapshot, now_s: float) -> Iterator[str]:
    """Lines of the text format about all that the records tell at `now_s` (wall time); `snapshot` with its services."""
    yield from _cluster(snapshot)
    yield from _jobs(snapshot, now_s)
    yield from _services(snapshot)


def _cluster(snapshot: Snapshot) -> Iterator[str]:
    alive = [job for job in snapshot.jobs.values() if not _phase(job).terminal]
    taken = sum(len(job.plan.value.everybody) for job in alive if job.plan is not None)
    closed = [node for node in snapshot.nodes.values() if node.draining or node.cordoned]
    for name, text, value in (
        ("nodes", "nodes that are there", len(snapshot.nodes)),
        ("slots", "slots of these", sum(node.slots for node in snapshot.nodes.values())),
        ("closed_slots", "of these, slots of nodes that take no workers", sum(node.slots for node in closed)),
        ("planned_slots", "slots that workers and spares are planned in", taken),
        ("waiting_jobs", "jobs that wait for their minimum", len(queue(snapshot))),
    ):
        yield from family(f"edl_cluster_{name}", "gauge", text, [({}, value)])
    phases = [
        ({"phase": phase.value}, float(sum(_phase(job) is phase for job in snapshot.jobs.values()))) for phase in Phase
    ]
    yield from family("edl_cluster_jobs", "gauge", "jobs that are known, by phase", phases)


def _phase(job: Job) -> Phase:
    return job.status.value.phase if job.status else Phase.PENDING


def _jobs(snapshot: Snapshot, now_s: float) -> Iterator[str]:
    rows = [job_row(job) for _, job in sorted(snapshot.jobs.items())]
    what = [({"job": row["job"], "kind": row["kind"], "phase": row["phase"]}, 1.0) for row in rows]
    yield from family("edl_job_info", "gauge", "1; the labels say what the job is and does", what)
    for name, kind, text, key in _JOB:
        yield from family(name, kind, text, [({"job": row["job"]}, row[key]) for row in rows])
    spent = [
        ({"job": name, "kind": kind}, seconds)
        for name, job in sorted(snapshot.jobs.items())
        for kind, seconds in goodput(job, now_s).items()
    ]
    yield from family("edl_job_time_seconds", "gauge", "seconds of the job's time, by what they were spent on", spent)
    yield from _resizes(snapshot)


def _resizes(snapshot: Snapshot) -> Iterator[str]:
    """What the driver, the leader and rank 0 of each job say of its worlds."""
    jobs = sorted(snapshot.jobs.items())
    statuses = [({"job": name}, job.status.value) for name, job in jobs if job.status is not None]
    yield from family(
        *("edl_job_generation", "gauge", "number of its world: rises with each resize"),
        [({"job": name}, float(job.rendezvous.generation)) for name, job in jobs],
    )
    yield from family(
        *("edl_job_last_pause_seconds", "gauge", "how long nobody trained at its last resize"),
        [({"job": name}, job.progress.pause_s) for name, job in jobs if job.progress is not None],
    )
    for name, text, field in (
        ("attempt", "number of its attempt, from 1", "attempt"),
        ("failures", "workers that failed since its last completed epoch", "failures"),
    ):
        found = [(label, float(getattr(status, field))) for label, status in statuses]
        yield from family(f"edl_job_{name}", "gauge", text, found)


def _services(snapshot: Snapshot) -> Iterator[str]:
    services = sorted(snapshot.services.items())
    sums = [service_row(service, listing) for service, listing in services]
    for name, text, key in _SERVICE:
        yield from family(name, "gauge", text, [({"service": row["service"]}, row[key]) for row in sums])
    yield from _teachers(services)
    yield from _students(services)


def _teachers(services: Iterable[tuple[str, Listing]]) -> Iterator[str]:
    listed = [(service, teacher) for service, listing in services for _, teacher in sorted(listing.teachers.items())]

    def samples(*values: tuple[str | None, str]) -> list[Sample]:
        """`values`: what is a quantile of which, and the field that has it."""
        return [
            (_teacher_labels(service, teacher) | ({} if quantile is None else {"quantile": quantile}), found)
            for service, teacher in listed
            for quantile, field in values
            for found in [getattr(teacher, field)]
        ]

    rate = "samples a second that it can answer"
    yield from family("edl_service_teacher_rate_samples_per_second", "gauge", rate, samples((None, "rate")))
    answered = "samples a second that it answers"
    name = "edl_service_teacher_answered_samples_per_second"
    yield from family(name, "gauge", answered, samples((None, "answered_rate")))
    latency = samples(("0.5", "latency_p50_s"), ("0.99", "latency_p99_s"))
    yield from family("edl_service_teacher_latency_seconds", "gauge", "of its newest answers", latency)
    yield from family("edl_service_teacher_queue_requests", "gauge", "that wait in it", samples((None, "queue")))


def _teacher_labels(service: str, teacher: TeacherRecord) -> dict[str, str]:
    return {"service": service, "teacher": teacher.teacher}


def _students(services: Iterable[tuple[str, Listing]]) -> Iterator[str]:
    listed = [(service, student) for service, listing in services for _, student in sorted(listing.students.items())]

    def samples(field: str) -> list[Sample]:
        return [(_student_labels(service, student), getattr(student, field)) for service, student in listed]

    for name, kind, text, field in (
        ("edl_student_samples_per_second", "gauge", "samples a second that it consumes", "rate"),
        ("edl_student_demand_samples_per_second", "gauge", "if it never waited for teachers", "demand"),
        ("edl_student_starved_ratio", "gauge", "part of its time that it waits for teachers", "starved"),
        ("edl_student_teacher_wait_seconds_total", "counter", "seconds that it waited for teachers", "starved_s"),
        (
            "edl_student_teacher_wait_seconds_per_step",
            "gauge",
            "seconds that each of its steps waits for teachers, lately",
            "wait_s_per_step",
        ),
    ):
        yield from family(name, kind, text, samples(field))


def _student_labels(service: str, student: StudentRecord) -> dict[str, str]:
    return {"service": service, "student": student.student, "job": student.job or "", "worker": student.worker or ""}
