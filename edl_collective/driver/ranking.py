"""Ranks of the members of a world, as Horovod wants them. [pure]

Invariant: the ranks of a node are contiguous and its local ranks begin with 0. Who is a member, and who comes first, is
decided in world.
"""

from collections.abc import Sequence

from edl_collective.coord.records import Member


def rank(order: Sequence[tuple[str, str]]) -> tuple[Member, ...]:
    """Places of (worker, node) pairs in Horovod's terms; the nodes in order of appearance, their workers in order.

    Horovod wants the ranks of a node to be contiguous. cross_rank counts, among the nodes that have a worker of the
    same local_rank, the nodes before this one.
    """
    by_node: dict[str, list[str]] = {}
    for worker, node in order:
        by_node.setdefault(node, []).append(worker)
    members: list[Member] = []
    for node, workers in by_node.items():
        for local_rank, worker in enumerate(workers):
            peers = [n for n, others in by_node.items() if len(others) > local_rank]
            place = (len(members), local_rank, len(workers), peers.index(node), len(peers))
            members.append(Member(worker, node, *place))
    return tuple(members)
