"""What a JobClient tells Prometheus of its node: slots, workers, how they ended, room for their logs. [pure]

Names carry their unit. Labels have few values: the node, and words that are listed here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distill.exposition import family
from edl_collective.coord.records import NodeRecord, Outcome, WorkerRecord, WorkerState

_LIVING = tuple(state for state in WorkerState if state is not WorkerState.EXITED)


@dataclass(frozen=True, slots=True)
class NodeSight:
    """A node as its JobClient sees it. `workers`: those that hold a slot; `ends`: since the JobClient began."""

    node: NodeRecord
    workers: tuple[WorkerRecord, ...]
    ends: Mapping[Outcome, int]
    #: with ZooKeeper
    connected: bool


def node_lines(sight: NodeSight, volume_bytes: int, free_bytes: int) -> Iterator[str]:
    """Lines of the text format. The figures in bytes: of the file system that holds the logs of workers."""
    label = {"node": sight.node.node}
    for name, text, value in (
        ("slots", "slots that it offers", sight.node.slots),
        ("used_slots", "slots in which something runs or is being cleared away", len({w.slot for w in sight.workers})),
        ("zookeeper_connected", "1 while its session lives", int(sight.connected)),
        ("log_volume_size_bytes", "size of the file system that holds the logs of workers", volume_bytes),
        ("log_volume_free_bytes", "what is free of it for this user", free_bytes),
    ):
        yield from family(f"edl_node_{name}", "gauge", text, [(label, value)])
    states = [({**label, "state": s.value}, float(sum(w.state is s for w in sight.workers))) for s in _LIVING]
    yield from family("edl_node_workers", "gauge", "processes that train or are to", states)
    ends = [({**label, "outcome": outcome.value}, float(sight.ends.get(outcome, 0))) for outcome in Outcome]
    yield from family("edl_node_ended_workers_total", "counter", "workers that ended, by how", ends)
