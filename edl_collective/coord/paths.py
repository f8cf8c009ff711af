"""Where each record lives in the ZooKeeper tree; the only module that builds or parses a path. [pure]

A path that this module did not build parses to None: foreign znodes below the root are ignored.
"""

import re
from dataclasses import dataclass

#: names of nodes, jobs, workers, services, teachers and students: they travel in paths, file names and Horovod's URLs,
#: so no '/', ':', '#' or '~'
NAME_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(NAME_PATTERN)


def check_name(kind: str, name: str) -> str:
    """Return `name` if it can name a `kind` (node, job, worker). Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a {kind}: use 1 to 63 letters, digits, '.', '_' or '-', "
            "beginning and ending with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True)
class Key:
    """What a path is about: `kind` names the record, the other fields whose it is."""

    kind: str
    node: str | None = None
    job: str | None = None
    worker: str | None = None
    event: str | None = None
    service: str | None = None
    teacher: str | None = None
    student: str | None = None


_JOB_RECORDS = ("spec", "plan", "status", "progress", "driver", "rendezvous")


@dataclass(frozen=True, slots=True)
class Paths:
    """The tree below `root`."""

    root: str = "/edl"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(?:/[A-Za-z0-9._-]+)+", self.root):
            raise ValueError(f"ZooKeeper root {self.root!r} must look like /edl or /team/edl")

    @property
    def leader(self) -> str:
        """Ephemeral: who leads (LeaderRecord)."""
        return f"{self.root}/leader/holder"

    @property
    def leader_epoch(self) -> str:
        """Its znode version fences every write of a leader."""
        return f"{self.root}/leader/epoch"

    @property
    def nodes(self) -> str:
        return f"{self.root}/nodes"

    @property
    def jobs(self) -> str:
        return f"{self.root}/jobs"

    def node(self, node: str) -> str:
        return f"{self.nodes}/{check_name('node', node)}"

    @property
    def drains(self) -> str:
        return f"{self.root}/drains"

    def drain(self, node: str) -> str:
        """Persistent (DrainRecord): it outlives the node, which is drained when it comes back."""
        return f"{self.drains}/{check_name('node', node)}"

    @property
    def cluster_events(self) -> str:
        """The history of what belongs to no job."""
        return f"{self.root}/events"

    @property
    def cluster_event_prefix(self) -> str:
        return f"{self.cluster_events}/e-"

    def job(self, job: str) -> str:
        return f"{self.jobs}/{check_name('job', job)}"

    def spec(self, job: str) -> str:
        return f"{self.job(job)}/spec"

    def plan(self, job: str) -> str:
        return f"{self.job(job)}/plan"

    def status(self, job: str) -> str:
        return f"{self.job(job)}/status"

    def progress(self, job: str) -> str:
        return f"{self.job(job)}/progress"

    def driver(self, job: str) -> str:
        return f"{self.job(job)}/driver"

    def rendezvous(self, job: str) -> str:
        return f"{self.job(job)}/rendezvous"

    def workers(self, job: str) -> str:
        return f"{self.job(job)}/workers"

    def worker(self, job: str, worker: str) -> str:
        return f"{self.workers(job)}/{check_name('worker', worker)}"

    def events(self, job: str) -> str:
        return f"{self.job(job)}/events"

    def event_prefix(self, job: str) -> str:
        """Prefix for Store.append: events/e-0000000000."""
        return f"{self.events(job)}/e-"

    @property
    def services(self) -> str:
        return f"{self.root}/services"

    def service(self, service: str) -> str:
        return f"{self.services}/{check_name('service', service)}"

    def teachers(self, service: str) -> str:
        return f"{self.service(service)}/teachers"

    def teacher(self, service: str, teacher: str) -> str:
        """Ephemeral (TeacherRecord), of the teacher's own session."""
        return f"{self.teachers(service)}/{check_name('teacher', teacher)}"

    def students(self, service: str) -> str:
        return f"{self.service(service)}/students"

    def student(self, service: str, student: str) -> str:
        """Ephemeral (StudentRecord), of the student's own session."""
        return f"{self.students(service)}/{check_name('student', student)}"

    def parse(self, path: str) -> Key | None:
        """Whose record `path` holds; None for containers and paths that are not ours."""
        if not path.startswith(self.root + "/"):
            return None
        match path[len(self.root) + 1 :].split("/"):
            case ["leader", "holder"]:
                return Key("leader")
            case ["leader", "epoch"]:
                return Key("leader_epoch")
            case ["nodes", node]:
                return Key("node", node=node)
            case ["drains", node]:
                return Key("drain", node=node)
            case ["events", event]:
                return Key("event", event=event)
            case ["jobs", job, record] if record in _JOB_RECORDS:
                return Key(record, job=job)
            case ["jobs", job, "workers", worker]:
                return Key("worker", job=job, worker=worker)
            case ["jobs", job, "events", event]:
                return Key("event", job=job, event=event)
            case ["services", service, "teachers", teacher]:
                return Key("teacher", service=service, teacher=teacher)
            case ["services", service, "students", student]:
                return Key("student", service=service, student=student)
        return None
