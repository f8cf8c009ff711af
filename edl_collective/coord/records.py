"""The records that EDL keeps in ZooKeeper: frozen values, versioned JSON, under 64 KiB each. [pure]

Who writes what: users (through the JobServer's API) the spec; the leading JobServer plan and status; a JobClient its
node and its workers; the driver its own address and the rendezvous; the JobClient of rank 0 the progress.
All of them are imported from here, with `encode` and `decode`; the parts of a spec from edl_collective.coord.job_spec.
"""

from enum import StrEnum
from typing import ClassVar

import msgspec

from edl_collective.coord.job_spec import JobKind as JobKind
from edl_collective.coord.job_spec import JobSpec as JobSpec
from edl_collective.coord.paths import check_name
from edl_collective.coord.record import MAX_RECORD_BYTES as MAX_RECORD_BYTES
from edl_collective.coord.record import Record as Record
from edl_collective.coord.record import decode as decode
from edl_collective.coord.record import encode as encode

#: letters and digits up to here are a name without a closer look, which large plans would feel
_SHORT_NAME = 32
#: of one node: a JobServer counts the slots of all
MAX_SLOTS = 4096


#: label of a node that offers less than it has: what failed its health check, and why
UNHEALTHY_LABEL = "unhealthy"


class NodeRecord(Record, frozen=True, kw_only=True):
    """A machine running a JobClient; ephemeral, so its absence means that the node is gone."""

    node: str
    #: new for each start of the JobClient: the same name with another incarnation is another life of the node
    incarnation: str
    #: host or IP that the other nodes can reach
    address: str
    #: port of the JobClient's HTTP endpoint (logs) at `address`
    port: int
    slots: int
    #: CUDA device of each slot; empty on a node of CPU slots, else one per slot
    gpus: tuple[int, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    draining: bool = False
    #: never written: set where it is read, while somebody cordons the node
    cordoned: bool = False
    started_at: float = 0.0
    #: of its JobClient's session, as asked for; None if it does not say
    session_timeout_s: float | None = None
    #: its HTTP endpoint speaks TLS, with a certificate that proves the cluster key
    tls: bool = False
    #: that its JobClient has the cluster key (SpecSigner.node_proof); "" if it does not say
    proof: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.slots <= MAX_SLOTS:
            raise ValueError(f"slots is {self.slots}: a node has at most {MAX_SLOTS}")


class DrainRecord(Record, frozen=True, kw_only=True):
    """Somebody asked that a node be left; it takes no workers while this record is there.

    `cordon`: only that; who is there stays.
    """

    node: str
    cordon: bool = False
    #: how long, from when its JobClient hears of it, its workers may take to leave at a step boundary; None: each job's
    #: own leave_timeout_s
    deadline_s: float | None = None
    #: wall time, for people
    asked_at: float = 0.0

    def __post_init__(self) -> None:
        check_name("node", self.node)
        if self.deadline_s is not None and not 0 <= self.deadline_s < float("inf"):
            raise ValueError(f"deadline_s is {self.deadline_s}: it must be a number of seconds, at least 0")
        if self.cordon and self.deadline_s is not None:
            raise ValueError(f"deadline_s is {self.deadline_s}: nobody leaves a node that is cordoned")


class PlannedWorker(msgspec.Struct, frozen=True, array_like=True):
    worker: str
    node: str
    slot: int


class Plan(Record, frozen=True, kw_only=True):
    """Which slots a job has. `revision` rises with each change; agents and the driver follow the newest."""

    revision: int
    workers: tuple[PlannedWorker, ...]
    #: node whose JobClient runs the driver; None for a job that has none
    driver_node: str | None
    #: why this plan differs from the one before, for people
    reason: str
    #: worker ids are w<number>; never used twice in a job
    next_worker: int
    #: epoch of the leader that wrote it
    leader_epoch: int
    #: standbys beyond what the job wants; the driver lets one take the place of a lost worker without asking
    spares: tuple[PlannedWorker, ...] = ()

    def __post_init__(self) -> None:
        # Workers are named in files and directories, and a plan is not signed.
        for planned in self.everybody:
            if not (planned.worker.isascii() and planned.worker.isalnum() and len(planned.worker) < _SHORT_NAME):
                check_name("worker", planned.worker)

    @property
    def everybody(self) -> tuple[PlannedWorker, ...]:
        """Workers and spares: all that may live."""
        return (*self.workers, *self.spares)


class Phase(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    HOLDING = "holding"
    FINISHING = "finishing"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def terminal(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED)


class TeachersAsked(msgspec.Struct, frozen=True):
    """How many teachers the students of a service need, as the leader saw it."""

    np: int
    #: wall time since which it is `np`, and the sentence that said why
    since: float
    why: str
    #: wall time since which fewer would do; None while they would not
    fewer_since: float | None = None


class Speed(msgspec.Struct, frozen=True, array_like=True):
    """Samples a second of a world of `np` workers, as rank 0 measured it."""

    np: int
    rate: float


class JobStatus(Record, frozen=True, kw_only=True):
    """The leader's view of a job."""

    phase: Phase
    reason: str
    #: wall time at which the phase began, and at which the first worker was planned
    since: float
    started_at: float | None = None
    #: number of the attempt, from 1; all workers dead begins the next
    attempt: int = 1
    #: failures and restarts since `epoch_seen` rose
    failures: int = 0
    restarts: int = 0
    #: completed epochs when the counters were last cleared
    epoch_seen: int = 0
    #: changes that the job's ChangeRule has made, and the wall time since which the last of them has been the running
    #: world; None until it is
    changes: int = 0
    changed_at: float | None = None
    #: wall time at which rank 0, which saves, was seen to have finished; None until then and in a new attempt
    saved_at: float | None = None
    #: standbys in a row that died beside a running world, until a newer one gets to the gate; number of the newest of
    #: them, and wall time of its death: they cost the job nothing, and the next ones start ever later
    standby_deaths: int = 0
    standby_newest: int = 0
    standby_died_at: float = 0.0
    #: of teachers whose number follows their students
    asked: TeachersAsked | None = None
    #: the sizes that the job has had, the newest last
    speeds: tuple[Speed, ...] = ()
    #: the job of higher priority that took its minimum; None while nobody did
    preempted_for: str | None = None


class WorkerState(StrEnum):
    STARTING = "starting"
    STANDBY = "standby"
    RUNNING = "running"
    LEAVING = "leaving"
    EXITED = "exited"


class Outcome(StrEnum):
    """How a worker ended: its training returned, it was told to leave, or neither.

    Aborted: its JobClient killed it in Horovod's init, because its generation had lost another member.
    """

    FINISHED = "finished"
    LEFT = "left"
    FAILED = "failed"
    ABORTED = "aborted"


class WorkerRecord(Record, frozen=True, kw_only=True):
    """One training process as its JobClient sees it."""

    worker: str
    node: str
    slot: int
    incarnation: str
    state: WorkerState
    pid: int | None = None
    generation: int = 0
    #: it was given a place in a world, whether or not it got there
    placed: bool = False
    #: exit status, negative for a signal as in subprocess; set with `outcome` when the state is exited
    exit_code: int | None = None
    outcome: Outcome | None = None
    #: last lines of its log when it failed
    log_tail: str = ""
    started_at: float = 0.0


class DriverRecord(Record, frozen=True, kw_only=True):
    """Where the driver of a job listens; ephemeral."""

    node: str
    host: str
    port: int
    epoch: int
    pid: int


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A worker's place in the world of one generation, in Horovod's terms."""

    worker: str
    node: str
    rank: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


class Rendezvous(Record, frozen=True, kw_only=True):
    """The world of a generation; compare-and-set by the driver before the first reply of that generation."""

    generation: int
    #: epoch of the driver that wrote it; a driver with a lower epoch has been replaced
    epoch: int
    members: tuple[Member, ...]
    #: why the world changed: becomes the cause of the resize that users see
    cause: str = ""
    plan_revision: int = 0

    EMPTY: ClassVar["Rendezvous"]


Rendezvous.EMPTY = Rendezvous(generation=0, epoch=0, members=())


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has done with its time since it speaks for the job: seconds by kind, as in edl_collective.goodput.

    `began_at`: wall time from which it counts, its last step before that; `fresh`: it had completed none.
    """

    by: str
    began_at: float
    began_step: int
    fresh: bool
    seconds: dict[str, float]


class Progress(Record, frozen=True, kw_only=True):
    """Training as rank 0 sees it, written at most once a second."""

    generation: int
    world_size: int
    #: completed epochs, and steps since the job began
    epoch: int
    step: int
    #: of the epoch or job in progress, where known
    epochs_total: int | None = None
    samples_per_s: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    #: seconds that each step of the epoch waited for teachers; None where there are none
    teacher_wait_s_per_step: float | None = None
    near_end: bool = False
    message: str = ""
    #: wall time of the last completed step
    last_step_at: float = 0.0
    #: of all epochs, not trained yet; None if the number of epochs is not known
    samples_left: int | None = None
    #: how long nobody trained at the last resize of this process
    pause_s: float | None = None
    #: what who speaks now has done with its time, and all before it
    spent: Spent | None = None
    earlier: dict[str, float] = msgspec.field(default_factory=dict)


class Event(Record, frozen=True, kw_only=True):
    """One line of a job's history. `kind`: job, plan, worker, resize, epoch, checkpoint, driver."""

    at: float
    kind: str
    text: str
    fields: dict[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)


class LeaderRecord(Record, frozen=True, kw_only=True):
    """Which JobServer leads and where its API listens."""

    server: str
    api_url: str
    epoch: int
    pid: int
