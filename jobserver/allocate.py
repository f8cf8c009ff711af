"""Which slots each job gets. [pure]

Invariants: no slot is given twice, none on a node that is not offered, never more than a job wants; a worker that may
stay stays where it is; the same arguments give the same answer. Jobs come in the order of their claim: first every
job's minimum, then what each holds beyond it, then what each wants beyond that, and last the spares: they take what
nobody wants, and go when somebody does. Why a job wants it is not known here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from edl_collective.coord.records import PlannedWorker
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

    def capacity(self) -> int:
        return sum(self.nodes.values()) - sum(self.holds(slot) for slot in self.taken)

    def holds(self, slot: Slot) -> bool:
        return 0 <= slot.slot < self.nodes.get(slot.node, 0)


def worker_number(worker: str) -> int:
    """7 of "w7": how new the worker is."""
    return int(worker[1:]) if worker[1:].isdigit() else 0


def allocate(requests: Sequence[Request], room: Room) -> dict[str, Grant]:
    """Grants by job; `requests` come in the order of their claim."""
    shares, missing = _shares(requests, room.capacity())
    kept = {request.job: _keep(request, shares[request.job], room) for request in requests}
    busy = set(room.taken) | set(room.leaving)
    for request in requests:  # the slot of a dropped worker is busy until its process has ended
        busy |= {Slot(w.node, w.slot) for w in (*request.held, *request.standing)}
    added: dict[str, list[Slot]] = {}
    for request in requests:
        stay = kept[request.job]
        slots = _place(shares[request.job] - len(stay), stay, busy, room)
        if not request.started and len(stay) + len(slots) < request.min_np:
            slots = []
        busy |= set(slots)
        added[request.job] = slots
    lacking = sum(shares[r.job] - len(kept[r.job]) - len(added[r.job]) for r in requests)
    standing = _stand_by(requests, kept, lacking, room)
    grants: dict[str, Grant] = {}
    for request in requests:
        stay, spares = kept[request.job], standing[request.job]
        # While somebody waits for a slot nobody gets a new spare: what is free now may be what is waited for.
        more = 0 if lacking or request.job in missing else request.spares - len(spares)
        spare_slots = _place_spares(more, (*stay, *spares), added[request.job], busy, room)
        busy |= set(spare_slots)
        dropped = tuple(w for w in (*request.held, *request.standing) if w not in stay and w not in spares)
        counts = (tuple(added[request.job]), spares, tuple(spare_slots), missing.get(request.job, 0))
        grants[request.job] = Grant(stay, dropped, *counts)
    return grants


def _stand_by(
    requests: Sequence[Request], kept: Mapping[str, Sequence[PlannedWorker]], lacking: int, room: Room
) -> dict[str, tuple[PlannedWorker, ...]]:
    """The spares that stay. Of the others as many go as slots are lacking and not about to become free anyway."""
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


def _shares(requests: Sequence[Request], capacity: int) -> tuple[dict[str, int], dict[str, int]]:
    """How many slots each job may have, and how many are missing for the minimum of those that cannot have it."""
    shares: dict[str, int] = {}
    missing: dict[str, int] = {}
    left = capacity
    for request in requests:
        share = request.min_np
        if share > left:  # what it holds already may stay, nothing else
            missing[request.job] = share - left
            share = min(len(request.held), left) if request.started else 0
        shares[request.job] = share
        left -= share
    able = [r for r in requests if r.job not in missing]
    for goals in ([(r, min(len(r.held), r.want)) for r in able], [(r, r.want) for r in able]):
        for request, goal in goals:
            more = min(max(0, goal - shares[request.job]), left)
            shares[request.job] += more
            left -= more
    return shares, missing


def _keep(request: Request, share: int, room: Room) -> tuple[PlannedWorker, ...]:
    """Who has a place: those in the world, the oldest first because they keep their ranks, then who waits longest."""
    able = [w for w in request.held if room.holds(Slot(w.node, w.slot))]
    able.sort(key=lambda w: (w.worker not in request.members, worker_number(w.worker)))
    spares = [w for w in request.standing if room.holds(Slot(w.node, w.slot))]
    kept = (*able, *spares)[:share]
    return tuple(sorted(kept, key=lambda w: worker_number(w.worker)))


def _place(count: int, stay: Sequence[PlannedWorker], busy: Set[Slot], room: Room) -> list[Slot]:
    """Up to `count` free slots, chosen one after the other."""
    if count <= 0:
        return []
    used = Counter(slot.node for slot in busy)
    own = Counter(worker.node for worker in stay)
    free = {node: [i for i in range(slots) if Slot(node, i) not in busy] for node, slots in sorted(room.nodes.items())}
    free = {node: slots for node, slots in free.items() if slots}
    chosen: list[Slot] = []
    while free and len(chosen) < count:
        rest = count - len(chosen)
        if room.pack:  # beside the job's own workers; else on the node that it fills best
            node = min(free, key=lambda n: (-own[n], len(free[n]) < rest, abs(len(free[n]) - rest), n))
            batch = free[node][:rest]  # having taken one, the job's own workers draw the others there
        else:
            node = min(free, key=lambda n: (own[n], used[n], -len(free[n]), n))
            batch = free[node][:1]
        chosen += [Slot(node, slot) for slot in batch]
        own[node] += len(batch)
        used[node] += len(batch)
        free[node] = free[node][len(batch) :]
        if not free[node]:
            del free[node]
    return chosen


def _place_spares(
    count: int, own: Sequence[PlannedWorker], added: Sequence[Slot], busy: Set[Slot], room: Room
) -> list[Slot]:
    """Up to `count` free slots, on the nodes with the fewest of the job: who dies with a node is replaced elsewhere."""
    crowd = Counter([*(w.node for w in own), *(slot.node for slot in added)])
    free = {Slot(node, i) for node, slots in room.nodes.items() for i in range(slots)} - busy
    chosen: list[Slot] = []
    while free and len(chosen) < count:
        slot = min(free, key=lambda s: (crowd[s.node], s))
        free.discard(slot)
        crowd[slot.node] += 1
        chosen.append(slot)
    return chosen
