"""Which slots each job gets. [pure]

Invariants: no slot is given twice, none on a node that is not offered, never more than a job wants; a worker that may
stay stays where it is; the same arguments give the same answer. How many each may have is told by jobserver.shares;
spares come after everybody's workers: they take what nobody wants, and go when somebody does. Why a job wants its
slots is not known here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain

from edl_collective.coord.records import PlannedWorker
from jobserver.free_slots import FreeSlots
from jobserver.gain import Outlook
from jobserver.shares import Claim, share
from jobserver.snapshot import Slot


@dataclass(frozen=True, slots=True)
class Request:
    """What one job asks for: `min_np` <= `want`."""

    job: str
    min_np: int
    want: int
    #: its living workers
    held: tuple[PlannedWorker, ...] = ()
    #: a job that began keeps what it holds below its minimum; one that did not gets all of its minimum or nothing
    started: bool = False
    #: standbys that it would like beside its workers, and those that live, the first to be promoted first
    spares: int = 0
    standing: tuple[PlannedWorker, ...] = ()
    #: those of `held` that hold the training state: the others are the first to go
    members: frozenset[str] = frozenset()
    #: see jobserver.shares.Claim
    priority: int = 0
    overdue: bool = False
    outlook: Outlook = field(default_factory=Outlook)

    @property
    def claim(self) -> Claim:
        numbers = (self.min_np, self.want, len(self.held))
        return Claim(self.job, *numbers, self.started, self.priority, self.overdue, self.outlook)

    def claim_in(self, room: "Room") -> Claim:
        bound = sum(w.node in room.closed and room.holds(Slot(w.node, w.slot)) for w in self.held)
        return replace(self.claim, bound=bound) if bound else self.claim


@dataclass(frozen=True, slots=True)
class Grant:
    """`kept`, `spares` and `dropped` part the workers and spares that live; the others are slots for new ones."""

    #: have a place; spares among them are promoted
    kept: tuple[PlannedWorker, ...] = ()
    dropped: tuple[PlannedWorker, ...] = ()
    added: tuple[Slot, ...] = ()
    spares: tuple[PlannedWorker, ...] = ()
    spare_slots: tuple[Slot, ...] = ()
    #: slots that the cluster lacks for the job's minimum, those that are only busy for a moment not counted
    missing: int = 0
    #: the job that took its minimum, and the one that may not be overtaken
    preempted_for: str | None = None
    behind: str | None = None

    @property
    def count(self) -> int:
        return len(self.kept) + len(self.added)


@dataclass(frozen=True, slots=True)
class Room:
    """Where jobs may be put."""

    #: slots of each node that takes workers
    nodes: Mapping[str, int]
    #: slots that others hold and keep
    taken: Set[Slot] = frozenset()
    #: slots whose process is still ending: free soon, not now
    leaving: Set[Slot] = frozenset()
    #: fill a node before the next one; otherwise spread over the emptiest
    pack: bool = True
    #: part of the slots up to which jobs get more than their minimum
    load_ceiling: float = 1.0
    #: nodes of which all slots are taken: workers that are there stay, nobody comes
    closed: Set[str] = frozenset()

    def capacity(self) -> int:
        return sum(self.nodes.values()) - sum(self.holds(slot) for slot in self.taken)

    def holds(self, slot: Slot) -> bool:
        return 0 <= slot.slot < self.nodes.get(slot.node, 0)


@lru_cache(maxsize=1 << 15)
def worker_number(worker: str) -> int:
    """7 of "w7": how new the worker is."""
    return int(worker[1:]) if worker[1:].isdigit() else 0


def allocate(requests: Sequence[Request], room: Room) -> dict[str, Grant]:
    """Grants by job; `requests` come in the order of their claim."""
    parted = share([request.claim_in(room) for request in requests], room.capacity(), room.load_ceiling)
    shares, missing = parted.counts, parted.missing
    kept = {request.job: _keep(request, shares[request.job], room) for request in requests}
    # The slot of a dropped worker is busy until its process has ended.
    living = ((w.node, w.slot) for request in requests for w in (*request.held, *request.standing))
    free = FreeSlots(room.nodes, chain(room.taken, room.leaving, living))
    added: dict[str, list[Slot]] = {}
    for request in requests:
        stay = kept[request.job]
        place = free.packed if room.pack else free.spread
        slots = place(shares[request.job] - len(stay), Counter(w.node for w in stay))
        if not request.started and len(stay) + len(slots) < request.min_np:
            free.give_back(slots)
            slots = []
        added[request.job] = slots
    lacking = sum(shares[r.job] - len(kept[r.job]) - len(added[r.job]) for r in requests)
    standing = _stand_by(requests, kept, lacking, room)
    grants: dict[str, Grant] = {}
    for request in requests:
        stay, spares = kept[request.job], standing[request.job]
        # While somebody waits for a slot nobody gets a new spare: what is free now may be what is waited for.
        more = 0 if lacking or request.job in missing else request.spares - len(spares)
        own = Counter([*(w.node for w in (*stay, *spares)), *(slot.node for slot in added[request.job])])
        spare_slots = free.apart(more, own)
        dropped = tuple(w for w in (*request.held, *request.standing) if w not in stay and w not in spares)
        slots_and_spares = (tuple(added[request.job]), spares, tuple(spare_slots))
        why = (table.get(request.job) for table in (parted.preempted, parted.behind))
        grants[request.job] = Grant(stay, dropped, *slots_and_spares, missing.get(request.job, 0), *why)
    return grants


def _stand_by(
    requests: Sequence[Request], kept: Mapping[str, Sequence[PlannedWorker]], lacking: int, room: Room
) -> dict[str, tuple[PlannedWorker, ...]]:
    """The spares that stay. Of the others as many go as slots are lacking and not about to become free anyway."""
    if not any(request.spares or request.standing for request in requests):
        return {request.job: () for request in requests}
    able = {request.job: _able_spares(request, kept[request.job], room) for request in requests}
    standing = {request.job: tuple(able[request.job][: request.spares]) for request in requests}
    ending = sum(room.holds(slot) for slot in room.leaving)
    for request in requests:
        living = {w for w in (*request.held, *request.standing) if room.holds(Slot(w.node, w.slot))}
        ending += len(living - {*kept[request.job], *standing[request.job]})
    for request in reversed(requests):  # the lowest claim first, its newest first
        spares = standing[request.job]
        gone = max(0, min(len(spares), lacking - ending))
        standing[request.job] = spares[: len(spares) - gone]
        ending += gone
    return standing


def _able_spares(request: Request, kept: Sequence[PlannedWorker], room: Room) -> list[PlannedWorker]:
    """Those that wait, and workers without a place that have never been in a world: they are as good."""
    never_in = [w for w in request.held if w.worker not in request.members]
    return [w for w in (*request.standing, *never_in) if w not in kept and room.holds(Slot(w.node, w.slot))]


def _keep(request: Request, share: int, room: Room) -> tuple[PlannedWorker, ...]:
    """Who has a place: those in the world, the oldest first because they keep their ranks, then who waits longest."""
    able = [w for w in request.held if w.slot < room.nodes.get(w.node, 0)]
    spares = [w for w in request.standing if w.slot < room.nodes.get(w.node, 0)]
    if len(able) > share:
        # Of those in the world, who is on a closed node stays first: its slot is of use to nobody else.
        able.sort(key=lambda w: (w.worker not in request.members, w.node not in room.closed, worker_number(w.worker)))
    kept = (*able, *spares)[:share]
    return tuple(sorted(kept, key=lambda w: worker_number(w.worker)))
