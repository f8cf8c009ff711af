"""What a job without processes (world_sim) is made of: workers, nodes, drivers and plans."""

from collections import deque
from dataclasses import dataclass

from edl_collective.coord.records import Plan, PlannedWorker, Rendezvous
from edl_collective.driver.state import State
from edl_collective.messages import Assigned, DriverMessage, ProxyMessage
from jobclient.job_proxy import LocalWorld


class DriverCrashed(Exception):
    """Raised inside the driver's turn when a planned crash strikes."""


@dataclass
class Worker:
    """`state`: starting, gate, init, running, left, dead."""

    name: str
    node: str
    state: str = "starting"
    generation: int = 0
    place: Assigned | None = None
    finished: bool = False
    #: a GET of its init was answered "not found": Horovod's time-out runs
    refused: bool = False
    #: it hangs: it hears nothing, and its JobClient kills it some time after an abort of its generation
    stopped: bool = False

    @property
    def alive(self) -> bool:
        return self.state not in ("left", "dead")


class Node:
    def __init__(self, name: str, incarnation: str) -> None:
        self.incarnation = incarnation
        self.world: LocalWorld[str] = LocalWorld(name, incarnation, lambda w, g: f"addr/{w}/{g}")
        self.connected = False
        #: the JobClient has a proxy of this job, which it opens with its first reason to
        self.proxy = False
        self.to_driver: deque[ProxyMessage] = deque()
        self.from_driver: deque[DriverMessage] = deque()


class Driver:
    def __init__(self, state: State) -> None:
        self.state = state
        self.reason = ""
        self.wake_at: float | None = None


def replace_plan(
    plan: Plan,
    workers: tuple[PlannedWorker, ...],
    next_worker: int,
    reason: str,
    spares: tuple[PlannedWorker, ...] | None = None,
) -> Plan:
    return Plan(
        spares=plan.spares if spares is None else spares,
        revision=plan.revision + 1,
        workers=workers,
        driver_node=plan.driver_node,
        reason=reason,
        next_worker=next_worker,
        leader_epoch=plan.leader_epoch,
    )


def with_epoch(record: Rendezvous, epoch: int) -> Rendezvous:
    return Rendezvous(
        generation=record.generation,
        epoch=epoch,
        members=record.members,
        cause=record.cause,
        plan_revision=record.plan_revision,
    )
