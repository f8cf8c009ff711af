"""What workers, JobClients and drivers say to each other. [pure]

Two conversations, both typed, neither pickled:
- a worker and its JobClient over a Unix socket: JSON, one message a line;
- a JobClient and the driver of a job over TCP: msgpack in authenticated frames (edl_collective/driver/wire.py).
All of it is soft state: whoever reconnects says hello with everything it knows, and every message may come twice.
"""

import msgspec

from edl_collective.coord.records import Member, Rendezvous, Spent


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base: the class name travels as the tag."""


# ---- worker -> JobClient ------------------------------------------------------------------------------------------


class WorkerHello(Message, frozen=True, kw_only=True):
    """First message of a worker; `token` is ClusterKey.worker_token(job, worker)."""

    job: str
    worker: str
    token: str
    pid: int


class Gate(Message, frozen=True, kw_only=True):
    """The worker is warm and waits for the world after `last_generation`.

    That is the newest generation it was Assigned to, whether or not Horovod came up in it; 0 if it never was. (A member
    that comes with an older one than the record's has lost the answer, and gets it again.)
    """

    last_generation: int


class Running(Message, frozen=True, kw_only=True):
    """Horovod is initialised for `generation`."""

    generation: int


class Report(Message, frozen=True, kw_only=True):
    """Training progress as this worker sees it; the JobClient forwards rank 0's."""

    generation: int
    world_size: int
    epoch: int
    step: int
    epochs_total: int | None = None
    samples_per_s: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    #: seconds that each step of the epoch waited for teachers; None where there are none
    teacher_wait_s_per_step: float | None = None
    near_end: bool = False
    message: str = ""
    last_step_at: float = 0.0
    samples_left: int | None = None
    pause_s: float | None = None
    spent: Spent | None = None


class Happened(Message, frozen=True, kw_only=True):
    """Something for the job's history (an epoch completed, a resize survived, a checkpoint written)."""

    kind: str
    text: str
    fields: dict[str, str | int | float | bool | None] = {}


class Finished(Message, frozen=True, kw_only=True):
    """The training function returned: what follows is not a failure of the world."""

    generation: int


class HeardAbort(Message, frozen=True, kw_only=True):
    """Answer to each Abort: this process lives. `inside`: its main thread is in a call of Horovod."""

    generation: int
    inside: bool


WorkerMessage = WorkerHello | Gate | Running | Report | Happened | Finished | HeardAbort

# ---- JobClient -> worker ------------------------------------------------------------------------------------------


class Assigned(Message, frozen=True, kw_only=True):
    """Answer to Gate: the worker's place in the world of `generation`.

    `rendezvous` is "127.0.0.1:PORT/r/JOB/WORKER/TOKEN/GENERATION" for HOROVOD_GLOO_RENDEZVOUS_ADDR (PORT then is 0).
    """

    generation: int
    epoch: int
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    rendezvous: str
    cause: str = ""


class Leave(Message, frozen=True, kw_only=True):
    """Answer to Gate: the job goes on without this worker.

    last: nobody goes on with the training state, for now.
    """

    reason: str = ""
    last: bool = False


class Interrupt(Message, frozen=True, kw_only=True):
    """Stop at the next step boundary if in `generation` or an earlier one, and come to the gate."""

    generation: int


class Abort(Message, frozen=True, kw_only=True):
    """A member of `generation` is dead: its collectives cannot complete."""

    generation: int


AgentMessage = Assigned | Leave | Interrupt | Abort

# ---- JobClient's proxy -> driver ------------------------------------------------------------------------------------


class NodeHello(Message, frozen=True, kw_only=True):
    """Everything a node knows of a job; sent first on every connection to a driver."""

    node: str
    incarnation: str
    #: generation of the newest world record this node has seen
    generation: int
    #: worker -> last generation of those that wait at the gate
    gates: dict[str, int] = {}
    #: worker -> generation of those that run
    running: dict[str, int] = {}
    #: workers that were assigned to `generation` and have not reported running
    assigned: tuple[str, ...] = ()
    #: worker -> detail of those that exited and were members of the newest record, or still may be
    exits: dict[str, str] = {}
    #: workers whose training function returned, exited or not
    finished: tuple[str, ...] = ()
    #: scope -> key -> value: what workers of this node have put in `generation`
    puts: dict[str, dict[str, bytes]] = {}


class AtGate(Message, frozen=True, kw_only=True):
    worker: str
    last_generation: int


class IsRunning(Message, frozen=True, kw_only=True):
    worker: str
    generation: int


class HasExited(Message, frozen=True, kw_only=True):
    worker: str
    #: for the cause of the resize: "killed by SIGKILL", "exit code 1"
    detail: str = ""


class HasFinished(Message, frozen=True, kw_only=True):
    """The training function of `worker` returned: its exit is no loss."""

    worker: str


class Puts(Message, frozen=True, kw_only=True):
    """Rendezvous keys that workers of this node have put."""

    generation: int
    puts: dict[str, dict[str, bytes]]


class Need(Message, frozen=True, kw_only=True):
    """Send these keys of `generation` (scope -> keys) if you have them: workers of this node wait for them."""

    generation: int
    keys: dict[str, tuple[str, ...]] = {}


class Here(Message, frozen=True, kw_only=True):
    """Answer to AskNode."""


ProxyMessage = NodeHello | AtGate | IsRunning | HasFinished | HasExited | Puts | Need | Here

# ---- driver -> JobClient's proxy ------------------------------------------------------------------------------------


class World(Message, frozen=True, kw_only=True):
    """The world of a new generation, already written to ZooKeeper."""

    record: Rendezvous


class InterruptWorker(Message, frozen=True, kw_only=True):
    worker: str
    generation: int


class LeaveWorker(Message, frozen=True, kw_only=True):
    """`worker` waits at the gate and no world will hold it again."""

    worker: str
    reason: str = ""
    last: bool = False


class AbortGeneration(Message, frozen=True, kw_only=True):
    generation: int


class Table(Message, frozen=True, kw_only=True):
    """Rendezvous keys of `generation` for the workers of this node."""

    generation: int
    puts: dict[str, dict[str, bytes]]


class AskNode(Message, frozen=True, kw_only=True):
    """The node is missing in the store: does its JobClient live?"""


DriverMessage = World | InterruptWorker | LeaveWorker | AbortGeneration | Table | AskNode

_WORKER_MESSAGES: msgspec.json.Decoder[WorkerMessage] = msgspec.json.Decoder(WorkerMessage)
_AGENT_MESSAGES: msgspec.json.Decoder[AgentMessage] = msgspec.json.Decoder(AgentMessage)


def encode_line(message: Message) -> bytes:
    """One JSON line, newline included."""
    return msgspec.json.encode(message) + b"\n"


def decode_worker_line(line: bytes) -> WorkerMessage:
    """What a worker says in `line`. Raises ValueError."""
    try:
        return _WORKER_MESSAGES.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a message of a worker: {error}") from error


def decode_agent_line(line: bytes) -> AgentMessage:
    """What a JobClient says to its worker in `line`. Raises ValueError."""
    try:
        return _AGENT_MESSAGES.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a message of a JobClient: {error}") from error


def assignment(record: Rendezvous, worker: str, rendezvous: str) -> Assigned | None:
    """The place of `worker` in the world of `record`, None if it is not a member."""
    member: Member | None = next((m for m in record.members if m.worker == worker), None)
    if member is None:
        return None
    return Assigned(
        generation=record.generation,
        epoch=record.epoch,
        rank=member.rank,
        size=len(record.members),
        local_rank=member.local_rank,
        local_size=member.local_size,
        cross_rank=member.cross_rank,
        cross_size=member.cross_size,
        rendezvous=rendezvous,
        cause=record.cause,
    )
