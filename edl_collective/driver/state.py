"""What the driver of a job knows: one frozen State, and how each event changes it. [pure]

All but the record and its version is soft state that the JobClients say again in a hello, so nothing else need survive
a driver. This module folds events into the state; what is to be done in a state is world.decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar

from edl_collective.coord.records import Plan, Rendezvous
from edl_collective.messages import AtGate, HasExited, HasFinished, Here, IsRunning, NodeHello, ProxyMessage

_V = TypeVar("_V")


class Where(Enum):
    GATE = "at the gate"
    ASSIGNED = "joining"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a JobClient last said of a live worker. `generation`: the last one at the gate, else the one it is in."""

    node: str
    where: Where
    generation: int


@dataclass(frozen=True, slots=True)
class Absence:
    """A node of a member that is not in the store. Times are monotonic seconds."""

    since_s: float
    #: when its JobClient was last asked whether it lives, None if it is not connected
    asked_s: float | None = None
    answered: bool = False


#: what was sent on the present connection of a node: (node, kind, worker or "", generation)
Told = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class State:
    """All that the driver of `epoch` knows."""

    epoch: int
    record: Rendezvous
    #: version of the record in the store
    version: int
    plan: Plan | None = None
    #: live nodes and their incarnations, None until first read
    nodes: Mapping[str, str] | None = None
    #: nodes whose JobClient is connected and has said hello, with the incarnation it named
    heard: Mapping[str, str] = field(default_factory=dict)
    #: live workers of heard nodes
    seen: Mapping[str, Seen] = field(default_factory=dict)
    #: worker -> how it ended, kept while it is in the record or the plan
    exits: Mapping[str, str] = field(default_factory=dict)
    finished: frozenset[str] = frozenset()
    #: workers told to leave: their exit is no loss
    leaving: frozenset[str] = frozenset()
    #: written to the store, result not known yet
    writing: Rendezvous | None = None
    told: frozenset[Told] = frozenset()
    #: since when the first newcomer waits at the gate; since when a member is back, or gone while others are not back
    waiting_since: float | None = None
    suspect_since: float | None = None
    #: members' nodes that are missing in the store
    absent: Mapping[str, Absence] = field(default_factory=dict)
    fenced: bool = False


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanRead:
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class NodesRead:
    """Incarnation of each live node."""

    nodes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Said:
    """A JobClient said something; its first message on a connection is a NodeHello."""

    node: str
    message: ProxyMessage


@dataclass(frozen=True, slots=True)
class Disconnected:
    node: str


@dataclass(frozen=True, slots=True)
class RecordWritten:
    version: int


@dataclass(frozen=True, slots=True)
class WriteConflict:
    """Somebody else wrote the record: another driver leads."""


Event = PlanRead | NodesRead | Said | Disconnected | RecordWritten | WriteConflict

# ---- observe --------------------------------------------------------------------------------------------------------


def observe(state: State, event: Event) -> State:
    """`state` after `event`. Every event may come twice."""
    match event:
        case PlanRead(plan):
            return state if _older(plan, state.plan) else replace(state, plan=plan)
        case NodesRead(nodes):
            return replace(state, nodes=dict(nodes))
        case Said(node, NodeHello() as hello):
            return _hello(state, node, hello)
        case Said(node, message) if node in state.heard:
            return _said(state, node, message)
        case Disconnected(node):
            return replace(_forget(state, node), heard=_without(state.heard, node))
        case RecordWritten(version) if state.writing is not None:
            return _written(state, state.writing, version)
        case WriteConflict():
            return replace(state, fenced=True, writing=None)
    return state


def _older(plan: Plan | None, known: Plan | None) -> bool:
    return plan is not None and known is not None and plan.revision < known.revision


def _without(mapping: Mapping[str, _V], key: str) -> dict[str, _V]:
    return {k: v for k, v in mapping.items() if k != key}


def _forget(state: State, node: str) -> State:
    """Drop the soft state of `node`: its next hello holds all of it."""
    seen = {w: s for w, s in state.seen.items() if s.node != node}
    return replace(state, seen=seen, told=frozenset(t for t in state.told if t[0] != node))


def _hello(state: State, node: str, hello: NodeHello) -> State:
    state = _forget(state, node)
    seen = dict(state.seen)
    seen.update({w: Seen(node, Where.ASSIGNED, hello.generation) for w in hello.assigned})
    seen.update({w: Seen(node, Where.RUNNING, g) for w, g in hello.running.items()})
    seen.update({w: Seen(node, Where.GATE, g) for w, g in hello.gates.items()})
    return replace(
        state,
        heard={**state.heard, node: hello.incarnation},
        seen=seen,
        exits={**state.exits, **hello.exits},
        finished=state.finished | set(hello.finished),
    )


def _said(state: State, node: str, message: ProxyMessage) -> State:
    match message:
        case AtGate(worker=worker, last_generation=last):
            # whoever asks for an older generation than the record's has not heard the answer: forget that it was sent
            told = frozenset(t for t in state.told if t[2] != worker)
            if last < state.record.generation:
                told -= {(node, "world", "", state.record.generation)}
            return replace(state, seen={**state.seen, worker: Seen(node, Where.GATE, last)}, told=told)
        case IsRunning(worker=worker, generation=generation):
            return replace(state, seen={**state.seen, worker: Seen(node, Where.RUNNING, generation)})
        case HasFinished(worker=worker):
            return replace(state, finished=state.finished | {worker})
        case Here() if node in state.absent:
            return replace(state, absent={**state.absent, node: replace(state.absent[node], answered=True)})
        case HasExited(worker=worker, detail=detail):
            return replace(state, seen=_without(state.seen, worker), exits={**state.exits, worker: detail})
    return state


def _written(state: State, record: Rendezvous, version: int) -> State:
    kept = {m.worker for m in record.members} | ({p.worker for p in state.plan.everybody} if state.plan else set())
    return replace(
        state,
        record=record,
        version=version,
        writing=None,
        told=frozenset(),
        exits={w: d for w, d in state.exits.items() if w in kept},
        finished=state.finished & kept,
        leaving=state.leaving & (kept | state.seen.keys()),
        waiting_since=None,
        suspect_since=None,
    )
