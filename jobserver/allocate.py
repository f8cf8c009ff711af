"""Which slots each job gets. [pure]

Invariants: no slot is given twice, none on a node that is not offered, never more than a job wants; a worker that may
stay stays where it is; the same arguments give the same answer. Jobs come in the order of their claim: first every
job's minimum, then what each holds beyond it, then what each wants beyond that. Why a job wants it is not known here.
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


@dataclass(frozen=True, slots=True)
class Grant:
    """`kept` and `dropped` part the held workers; `added` are slots for new ones."""

    kept: tuple[PlannedWorker, ...] = ()
    dropped: tuple[PlannedWorker, ...] = ()
    added: tuple[Slot, ...] = ()
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
        busy |= {Slot(w.node, w.slot) for w in request.held}
    grants: dict[str, Grant] = {}
    for request in requests:
        stay = kept[request.job]
        added = _place(shares[request.job] - len(stay), stay, busy, room)
        if not request.started and len(stay) + len(added) < request.min_np:
            added = []
        busy |= set(added)
        dropped = tuple(w for w in request.held if w not in stay)
        grants[request.job] = Grant(stay, dropped, tuple(added), missing.get(request.job, 0))
    return grants


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
    """The held workers that stay: the newest go first, so that the oldest keep their ranks."""
    able = [w for w in request.held if room.holds(Slot(w.node, w.slot))]
    able.sort(key=lambda w: worker_number(w.worker))
    return tuple(able[:share])


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
