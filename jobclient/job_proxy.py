"""The world of one job as its node sees it: gates, assignments and rendezvous keys of the local workers. [pure]

Invariants: a worker is answered only from a record that the driver has written; keys belong to exactly one generation,
the newest record's, and a request of any other is held; once a generation is aborted, what was held of it is answered
"not found", so that its workers do not wait inside Horovod for ever; whatever a new driver needs to know is in `hello`.
This module holds no connection and no timer: rendezvous_proxy.py does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from edl_collective.coord.records import Rendezvous
from edl_collective.messages import (
    Abort,
    AbortGeneration,
    AgentMessage,
    AskNode,
    AtGate,
    DriverMessage,
    HasExited,
    HasFinished,
    Here,
    Interrupt,
    InterruptWorker,
    IsRunning,
    Leave,
    LeaveWorker,
    Need,
    NodeHello,
    ProxyMessage,
    Table,
    World,
    assignment,
)
from edl_collective.topology import ALONE_PLACE, asks_alone

T = TypeVar("T")

#: scope in which Horovod asks for its place
RANK_AND_SIZE = "rank_and_size"


@dataclass(frozen=True, slots=True)
class ToWorker:
    worker: str
    message: AgentMessage


@dataclass(frozen=True, slots=True)
class ToDriver:
    """Lost without harm while no driver is connected: the next hello says it too."""

    message: ProxyMessage


@dataclass(frozen=True, slots=True)
class WorldChanged:
    record: Rendezvous


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A held request can be answered now; None: "not found"."""

    ticket: T
    value: bytes | None


class Waiting(Enum):
    """The answer to a request that has to wait: for its key, or, if of another generation, for the abort of that."""

    WAITING = "waiting"


WAITING = Waiting.WAITING


class LocalWorld(Generic[T]):
    """State machine of one job on one node; T is whatever the server uses to answer a held request later.

    `address(worker, generation)` is the rendezvous address that an Assigned message carries.
    """

    def __init__(self, node: str, incarnation: str, address: Callable[[str, int], str]) -> None:
        self._node, self._incarnation, self._address = node, incarnation, address
        self._members: frozenset[str] = frozenset()
        self.record = Rendezvous.EMPTY
        #: worker -> last generation, of those at the gate; a worker is in at most one of these three
        self._gates: dict[str, int] = {}
        #: worker -> generation of those that got their place and have not said that they run
        self._assigned: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._exits: dict[str, str] = {}
        self._finished: set[str] = set()
        #: worker -> generation to leave; a level, said again when the worker starts to run
        self._interrupts: dict[str, int] = {}
        #: the newest generation that was aborted, with all before it; -1: none
        self._aborted = -1
        #: keys of record.generation: all that are known, those that workers of this node have put for others, and
        #: those of the latter that the driver was not told yet
        self._known: dict[str, dict[str, bytes]] = {}
        self._own: dict[str, dict[str, bytes]] = {}
        self._unsaid: dict[str, dict[str, bytes]] = {}
        self._held: dict[tuple[str, str], list[T]] = {}
        #: held requests of other generations than record.generation
        self._strays: dict[T, int] = {}

    # ---- what local workers do ----------------------------------------------------------------------------------

    def gate(self, worker: str, last_generation: int) -> list[ToWorker | ToDriver]:
        """`worker` waits for the world after `last_generation`."""
        self._running.pop(worker, None)
        self._assigned.pop(worker, None)
        self._gates[worker] = last_generation
        if worker in self._members and last_generation < self.record.generation:
            return [self._place(worker)]
        return [ToDriver(AtGate(worker=worker, last_generation=last_generation))]

    def running(self, worker: str, generation: int) -> list[ToWorker | ToDriver]:
        """Horovod is up in `worker` for `generation`; levels that it may have missed during that are said again."""
        self._gates.pop(worker, None)
        self._assigned.pop(worker, None)
        self._running[worker] = generation
        actions: list[ToWorker | ToDriver] = [ToDriver(IsRunning(worker=worker, generation=generation))]
        if self._aborted >= generation:
            actions.append(ToWorker(worker, Abort(generation=self._aborted)))
        if self._interrupts.get(worker, 0) >= generation:
            actions.append(ToWorker(worker, Interrupt(generation=self._interrupts[worker])))
        return actions

    def finished(self, worker: str) -> list[ToWorker | ToDriver]:
        """The training function of `worker` returned; its exit will be no loss."""
        self._finished.add(worker)
        return [ToDriver(HasFinished(worker=worker))]

    def exited(self, worker: str, detail: str) -> list[ToWorker | ToDriver]:
        """`worker` was reaped; `detail` as in "killed by SIGKILL"."""
        for place in (self._gates, self._assigned, self._running, self._interrupts):
            place.pop(worker, None)
        self._exits[worker] = detail
        return [ToDriver(HasExited(worker=worker, detail=detail))]

    # ---- what the driver says -------------------------------------------------------------------------------------

    def hello(self) -> NodeHello:
        """Everything a driver has to know of this node."""
        newest = self.record.generation
        old = {w: g for w, g in self._assigned.items() if g < newest}
        return NodeHello(
            node=self._node,
            incarnation=self._incarnation,
            generation=newest,
            gates=dict(self._gates),
            running={**self._running, **old},
            assigned=tuple(w for w in self._assigned if w not in old),
            exits=dict(self._exits),
            finished=tuple(sorted(self._finished)),
            puts={scope: dict(keys) for scope, keys in self._own.items()},
        )

    def heard(self, message: DriverMessage) -> list[ToWorker | ToDriver | WorldChanged | Answer[T]]:
        """Act on a message of the driver; all of them may come twice."""
        match message:
            case World(record=record):
                return self._world(record)
            case InterruptWorker(worker=worker, generation=generation):
                self._interrupts[worker] = max(generation, self._interrupts.get(worker, 0))
                return (
                    [ToWorker(worker, Interrupt(generation=generation))] if self._lives_in(worker, generation) else []
                )
            case LeaveWorker(worker=worker) if self._gates.pop(worker, None) is not None:
                return [ToWorker(worker, Leave(reason=message.reason, last=message.last))]
            case AbortGeneration(generation=generation):
                self._aborted = max(self._aborted, generation)
                lost = [w for w in (*self._assigned, *self._running) if self._lives_in(w, generation)]
                return [*self._refuse(), *(ToWorker(worker, Abort(generation=generation)) for worker in lost)]
            case AskNode():
                return [ToDriver(Here())]
            case Table(generation=generation, puts=puts) if generation == self.record.generation:
                return [*self._learn(puts)]
        return []

    def _lives_in(self, worker: str, generation: int) -> bool:
        """Whether `worker` is in a world that is no newer than `generation`."""
        mine = self._running.get(worker) or self._assigned.get(worker)
        return mine is not None and mine <= generation

    def _world(self, record: Rendezvous) -> list[ToWorker | ToDriver | WorldChanged | Answer[T]]:
        actions: list[ToWorker | ToDriver | WorldChanged | Answer[T]] = []
        if (record.generation, record.epoch) < (self.record.generation, self.record.epoch):
            return actions
        if record.generation > self.record.generation:
            self._begin(record)
            actions.append(WorldChanged(record))
        waiting = [w for w, last in self._gates.items() if w in self._members and last < record.generation]
        return [*actions, *(self._place(worker) for worker in waiting)]

    def _begin(self, record: Rendezvous) -> None:
        """Forget the keys of the generation before; its held requests go on waiting for nothing but its abort."""
        self._strays.update({t: self.record.generation for tickets in self._held.values() for t in tickets})
        self.record = record
        self._members = frozenset(m.worker for m in record.members)
        self._exits = {w: d for w, d in self._exits.items() if w in self._members}
        self._interrupts = {w: g for w, g in self._interrupts.items() if g >= record.generation}
        self._known, self._own, self._unsaid, self._held = {}, {}, {}, {}

    def _place(self, worker: str) -> ToWorker | ToDriver:
        """Let a member at the gate into its world, or, if that was aborted meanwhile, count it as back from there."""
        generation = self.record.generation
        if generation <= self._aborted:
            self._gates[worker] = generation
            return ToDriver(AtGate(worker=worker, last_generation=generation))
        del self._gates[worker]
        self._assigned[worker] = generation
        place = assignment(self.record, worker, self._address(worker, generation))
        assert place is not None
        return ToWorker(worker, place)

    # ---- rendezvous keys --------------------------------------------------------------------------------------------

    def get(self, worker: str, generation: int, scope: str, key: str, ticket: T) -> bytes | Waiting | None:
        """The value of a key; None if it is to be answered "not found" at once; WAITING if `ticket` waits for it."""
        if generation != self.record.generation or worker not in self._members:
            if generation <= self._aborted:
                return None
            self._strays[ticket] = generation
            return WAITING
        if scope == RANK_AND_SIZE:
            return self._rank_and_size(worker, key)
        value = self._known.get(scope, {}).get(key)
        if value is not None:
            return value
        if key.startswith("rank_") or generation <= self._aborted:
            return None  # gloo asks whether a lower rank is there already, and may not be kept waiting
        self._held.setdefault((scope, key), []).append(ticket)
        return WAITING

    def put(self, worker: str, generation: int, scope: str, key: str, value: bytes) -> list[Answer[T]] | Waiting:
        """Keep a key and answer those that wait for it; harmless when repeated. WAITING if of another generation."""
        if generation != self.record.generation or worker not in self._members:
            return [] if generation <= self._aborted else WAITING
        if not key.startswith("rank_") and not scope.startswith("local_"):
            self._own.setdefault(scope, {})[key] = value
            self._unsaid.setdefault(scope, {})[key] = value
        return self._learn({scope: {key: value}})

    def take_unsaid(self) -> dict[str, dict[str, bytes]]:
        """Keys put since the last call, for the driver."""
        unsaid, self._unsaid = self._unsaid, {}
        return unsaid

    def missing(self) -> Need | None:
        """What requests wait for, None if none does."""
        if not self._held:
            return None
        keys: dict[str, list[str]] = {}
        for scope, key in self._held:
            keys.setdefault(scope, []).append(key)
        return Need(generation=self.record.generation, keys={scope: tuple(names) for scope, names in keys.items()})

    def drop(self, ticket: T) -> None:
        """The connection of `ticket` is closed."""
        self._strays.pop(ticket, None)
        for place, tickets in list(self._held.items()):
            if ticket in tickets:
                tickets.remove(ticket)
                if not tickets:
                    del self._held[place]

    def _refuse(self) -> list[Answer[T]]:
        """Answer what is held of aborted generations: Horovod then polls until its own time-out."""
        refused = [ticket for ticket, generation in self._strays.items() if generation <= self._aborted]
        for ticket in refused:
            del self._strays[ticket]
        if self.record.generation <= self._aborted:
            refused += [ticket for tickets in self._held.values() for ticket in tickets]
            self._held = {}
        return [Answer(ticket, None) for ticket in refused]

    def _learn(self, puts: Mapping[str, Mapping[str, bytes]]) -> list[Answer[T]]:
        answers: list[Answer[T]] = []
        for scope, keys in puts.items():
            self._known.setdefault(scope, {}).update(keys)
            for key, value in keys.items():
                answers += [Answer(ticket, value) for ticket in self._held.pop((scope, key), ())]
        return answers

    def _rank_and_size(self, worker: str, key: str) -> bytes:
        """ "rank,size,local rank,local size,cross rank,cross size", as GlooContext::Initialize parses it."""
        m = next(m for m in self.record.members if m.worker == worker)
        places = ALONE_PLACE if asks_alone(key) else (m.local_rank, m.local_size, m.cross_rank, m.cross_size)
        return ",".join(map(str, (m.rank, len(self.record.members), *places))).encode()
