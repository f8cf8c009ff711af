"""Which of the free slots a job gets: a pool that is taken from, job after job. [pure]

Invariant: the answer depends on what is free and on the nodes that the job is on already, not on the order in which
the pool was filled. Nodes are found by their number of free slots, so that a large cluster costs no more than the
nodes that are used.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jobserver.snapshot import Slot

#: of a node: what compares lowest is taken first; the last item is the node
Key = Callable[[str], tuple[Any, ...]]


class FreeSlots:
    """The slots below `nodes` (slots by node) that are not in `busy`, pairs of node and slot."""

    def __init__(self, nodes: Mapping[str, int], busy: Iterable[tuple[str, int]]) -> None:
        taken: dict[str, set[int]] = {}
        for node, slot in busy:
            taken.setdefault(node, set()).add(slot)
        self._free: dict[str, list[int]] = {}
        #: names by number of free slots; a name whose number has changed since is passed over
        self._sized: dict[int, list[str]] = {}
        self._used = Counter({node: len(slots) for node, slots in taken.items()})
        for node, count in sorted(nodes.items()):
            used = taken.get(node)
            self._keep(node, [i for i in range(count) if i not in used] if used else list(range(count)))

    def packed(self, count: int, own: Counter[str]) -> list[Slot]:
        """Up to `count` slots beside the job's own workers (`own`: how many it has on a node); else on the node that
        they fill best."""
        chosen: list[Slot] = []
        while len(chosen) < count:
            rest = count - len(chosen)
            node = self._beside(own, rest) or self._filled_best(rest)
            if node is None:
                break
            batch = self._take(node, rest)  # having taken one, the job's own workers draw the others there
            own[node] += len(batch)
            chosen += batch
        return chosen

    def spread(self, count: int, own: Counter[str]) -> list[Slot]:
        """Up to `count` slots, each on a node with the fewest of the job, then the fewest of anybody."""
        return self._one_by_one(count, own, lambda node: (own[node], self._used[node], -len(self._free[node]), node))

    def apart(self, count: int, own: Counter[str]) -> list[Slot]:
        """Up to `count` slots, each on a node with the fewest of the job: who dies with a node has others elsewhere."""
        return self._one_by_one(count, own, lambda node: (own[node], node))

    def give_back(self, slots: Iterable[Slot]) -> None:
        by_node: dict[str, list[int]] = {}
        for slot in slots:
            by_node.setdefault(slot.node, []).append(slot.slot)
        for node, indices in by_node.items():
            self._used[node] -= len(indices)
            self._keep(node, sorted([*self._free.get(node, []), *indices]))

    def _beside(self, own: Counter[str], rest: int) -> str | None:
        """The node with most of the job's workers, of those that have a free slot."""
        able = [node for node, count in own.items() if count > 0 and node in self._free]
        free = self._free
        return min(able, key=lambda n: (-own[n], len(free[n]) < rest, abs(len(free[n]) - rest), n), default=None)

    def _filled_best(self, rest: int) -> str | None:
        """The first of the nodes that have just enough free slots, else as many as can be had."""
        sizes = sorted(self._sized, key=lambda size: (size < rest, abs(size - rest)))
        for size in sizes:
            names = self._sized[size]
            while names and len(self._free.get(names[0], ())) != size:
                heapq.heappop(names)
            if names:
                return names[0]
            del self._sized[size]
        return None

    def _one_by_one(self, count: int, own: Counter[str], key: Key) -> list[Slot]:
        if count <= 0:
            return []
        waiting = [key(node) for node in self._free]
        heapq.heapify(waiting)
        chosen: list[Slot] = []
        while waiting and len(chosen) < count:
            node = heapq.heappop(waiting)[-1]
            chosen += self._take(node, 1)
            own[node] += 1
            if node in self._free:
                heapq.heappush(waiting, key(node))
        return chosen

    def _take(self, node: str, most: int) -> list[Slot]:
        free = self._free[node]
        self._keep(node, free[most:])
        batch = free[:most]
        self._used[node] += len(batch)
        return [Slot(node, i) for i in batch]

    def _keep(self, node: str, free: list[int]) -> None:
        if not free:
            self._free.pop(node, None)
            return
        self._free[node] = free
        heapq.heappush(self._sized.setdefault(len(free), []), node)
