"""What a user wants of a job: its spec, with the schedule of how many workers it has when. [pure]

Invariant: a spec that exists is consistent; each sentence of a refusal names the field to change. Whether the cluster
can do it is not asked here.
"""

from enum import StrEnum

import msgspec

from edl_collective.coord.paths import check_name
from edl_collective.coord.record import Record


class EpochStep(msgspec.Struct, frozen=True):
    """From the time that `epoch` epochs are completed the job wants `np` workers."""

    epoch: int
    np: int


class TimeStep(msgspec.Struct, frozen=True):
    """From `after_s` seconds after its start the job wants `np` workers."""

    after_s: float
    np: int


class ChangeRule(msgspec.Struct, frozen=True):
    """The changing script: every `every_s` seconds in turn `remove` workers leave, then `add` workers join.

    An interval counts from the moment at which what the change before asked for was the running world.
    """

    every_s: float
    add: int
    remove: int


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers a job wants over time; exactly one of the fields is set."""

    epochs: tuple[EpochStep, ...] = ()
    times: tuple[TimeStep, ...] = ()
    change: ChangeRule | None = None


class JobKind(StrEnum):
    ELASTIC = "elastic"
    #: planned here, launched by horovodrun with scripts/discover_hosts.sh
    EXTERNAL = "external"
    #: workers that know nothing of each other and never finish: inference servers for distillation
    TEACHER = "teacher"


MAX_PRIORITY = 1000
#: fields of a JobSpec that are times in seconds
TIMEOUTS = ("hold_timeout_s", "leave_timeout_s", "stop_timeout_s", "warm_timeout_s", "return_timeout_s")


class JobSpec(Record, frozen=True, kw_only=True):
    """What a user wants; written by the API, never by a controller."""

    job: str
    command: tuple[str, ...]
    min_np: int = 1
    max_np: int = 1
    #: wanted workers; None: as many as fit up to max_np, or what the schedule says
    np: int | None = None
    #: standbys kept warm beside the workers, in slots that no job wants; they replace the lost and join first
    spares: int = 0
    schedule: Schedule | None = None
    kind: JobKind = JobKind.ELASTIC
    #: among jobs that wait for slots the higher is served first, and may take the slots of a lower one
    priority: int = 0
    #: of teachers: the service that they serve
    service: str | None = None
    #: directory in which the package hook runs and, without `pod_path`, the command too
    work_dir: str = "."
    #: run as `<package_hook> -pod_id <worker>` in work_dir before each worker starts
    package_hook: str | None = None
    #: the command runs in <pod_path>/<worker> when set (relative to work_dir)
    pod_path: str | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    checkpoint_url: str | None = None
    #: new attempts after every worker died, counted again from 0 whenever an epoch completes
    max_restarts: int = 3
    #: worker failures since the last completed epoch before the job is FAILED
    max_failures: int = 10
    #: how long the job may hold below min_np before it is FAILED
    hold_timeout_s: float = 600.0
    #: how long a worker may take to leave at a step boundary, and then from SIGTERM to SIGKILL
    leave_timeout_s: float = 30.0
    stop_timeout_s: float = 10.0
    #: how long a worker may take from its start, package hook included, to the gate
    warm_timeout_s: float = 1800.0
    #: after an abort of its generation: how long a worker may be silent, and wait in Horovod beyond gloo's own time-out
    return_timeout_s: float = 5.0
    #: set by stop: the job is to end, and why, in the words of who stopped it
    stopped: bool = False
    stop_reason: str = ""
    submitted_at: float = 0.0

    def __post_init__(self) -> None:
        check_name("job", self.job)
        if not self.command:
            raise ValueError("command is empty: give the script that the workers run")
        if self.min_np < 1:
            raise ValueError(f"min_np is {self.min_np}: it must be at least 1")
        if self.min_np > self.max_np:
            raise ValueError(f"min_np is {self.min_np} and max_np is {self.max_np}: min_np must not exceed max_np")
        if self.np is not None and not self.min_np <= self.np <= self.max_np:
            raise ValueError(f"np is {self.np}: it must be between min_np {self.min_np} and max_np {self.max_np}")
        if abs(self.priority) > MAX_PRIORITY:
            raise ValueError(f"priority is {self.priority}: it must be between -{MAX_PRIORITY} and {MAX_PRIORITY}")
        if self.spares < 0:
            raise ValueError(f"spares is {self.spares}: it must be at least 0")
        if self.spares and self.kind is JobKind.EXTERNAL:
            raise ValueError(f"spares is {self.spares}: horovodrun, which launches an external job, knows no spares")
        if self.spares and self.kind is JobKind.TEACHER:
            raise ValueError(f"spares is {self.spares}: teachers have no world in which a standby could take a place")
        if (self.service is not None) != (self.kind is JobKind.TEACHER):
            raise ValueError(f"service is {self.service}: a job of kind teacher names one, and no other job does")
        if self.service is not None:
            check_name("service", self.service)
        for name in TIMEOUTS:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        self._check_process_texts()

    def _check_process_texts(self) -> None:
        """No process can be started with a NUL byte in its arguments, directory or environment."""
        named = {"work_dir": self.work_dir, "package_hook": self.package_hook, "pod_path": self.pod_path}
        texts = [("command", text) for text in self.command]
        texts += [(field, text) for field, text in named.items() if text is not None]
        texts += [("env", text) for text in (*self.env, *self.env.values())]
        for field, text in texts:
            if "\0" in text:
                raise ValueError(f"{field} holds a NUL byte in {text!r}: no process can be started with it")
        for name in self.env:
            if not name or "=" in name:
                raise ValueError(f"env has a variable named {name!r}: a name must not be empty or hold '='")
