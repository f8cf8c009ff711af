"""The rules that a simulated day compares. Claims come in the order of submission. [pure]"""

from collections.abc import Mapping, Sequence

from jobserver.shares import Claim, share

#: of the predecessor's autoscaler: it takes from jobs when more of the cluster than this is in use
MAX_LOAD = 0.97


def edl(claims: Sequence[Claim], capacity: int) -> Mapping[str, int]:
    """Ours."""
    order = sorted(range(len(claims)), key=lambda i: (-claims[i].priority, i))
    return share([claims[i] for i in order], capacity).counts


def first_come(claims: Sequence[Claim], capacity: int) -> Mapping[str, int]:
    """First come, first served, with the number of workers that the user names: halfway from least to most."""
    counts: dict[str, int] = {}
    left = capacity
    waits = False
    for claim in sorted(claims, key=lambda claim: not claim.started):
        asked = (claim.min_np + claim.want) // 2
        count = asked if asked <= left and (claim.started or not waits) else 0
        waits = waits or count == 0
        counts[claim.job] = count
        left -= count
    return counts


def predecessor(claims: Sequence[Claim], capacity: int) -> Mapping[str, int]:
    """The predecessor's autoscaler, asked every 30 s: one worker more for the neediest, one less from the fullest.

    A job starts with its minimum when it fits. As its rule was published: order by (held - min) / (max - min), then by
    need; grow while below the maximum and it fits, shrink while jobs wait or more than MAX_LOAD of the slots is used.
    """
    counts = {claim.job: claim.held for claim in claims}
    free = capacity - sum(counts.values())
    waiting = [claim for claim in claims if counts[claim.job] < claim.min_np]
    for claim in waiting:
        if claim.min_np - counts[claim.job] <= free:
            free -= claim.min_np - counts[claim.job]
            counts[claim.job] = claim.min_np
    starved = any(counts[claim.job] < claim.min_np for claim in waiting)
    elastic = [claim for claim in claims if claim.want > claim.min_np and counts[claim.job] >= claim.min_np]
    elastic.sort(key=lambda claim: ((counts[claim.job] - claim.min_np) / (claim.want - claim.min_np), -claim.want))
    if starved or free < (1 - MAX_LOAD) * capacity:
        for claim in reversed(elastic):
            if counts[claim.job] > claim.min_np:
                counts[claim.job] -= 1
                free += 1
        return counts
    for claim in elastic:
        if counts[claim.job] < claim.want and free - 1 >= (1 - MAX_LOAD) * capacity:
            counts[claim.job] += 1
            free -= 1
    return counts
