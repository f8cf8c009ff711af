"""Whether a node that is missing in the store is lost. [pure]

A node that is well loses its ephemeral in an outage of ZooKeeper that ends sessions, or when it alone is cut off from
there, and registers again later. So absence by itself ends no world: whoever is connected is asked and lives if it
answers. Of all others the leader judges, and its plan says so. If nobody leads, time does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edl_collective.driver.state import Absence, State


@dataclass(frozen=True, slots=True)
class Judgement:
    """`absent` replaces State.absent; `lost` nodes are gone, `ask` are to be asked now; look again at `wake_at`."""

    absent: Mapping[str, Absence]
    lost: frozenset[str] = frozenset()
    ask: tuple[str, ...] = ()
    wake_at: float | None = None


def judge(state: State, planned_on: frozenset[str], now_s: float, answer_s: float, absence_s: float) -> Judgement:
    """What to think of the nodes of members that are not in the store.

    planned_on: nodes on which the plan still has a member of the world: they are lost only after absence_s of silence.
    answer_s: how long a JobClient may take to answer when the plan has let go of it, and when one that answered is
    asked again; one that is not connected, from the end of its connection or our start on: it may blink, and answers
    when it is back.
    """
    known = state.nodes or {}
    absent: dict[str, Absence] = {}
    lost: list[str] = []
    ask: list[str] = []
    wakes: list[float] = []
    for node in sorted({m.node for m in state.record.members if m.node not in known}):
        before = state.absent.get(node, Absence(now_s))
        patience_s = absence_s if node in planned_on else answer_s
        if node not in state.heard:
            if before.asked_s is not None:  # it was connected until now
                before = Absence(now_s)
            absent[node] = replace(before, asked_s=None, answered=False)
            deadline = before.since_s + patience_s
            if now_s >= deadline:
                lost.append(node)
            else:
                wakes.append(deadline)
            continue
        asked_s = before.asked_s
        if asked_s is None or (before.answered and now_s >= asked_s + answer_s):
            asked_s, before = now_s, replace(before, asked_s=now_s, answered=False)
            ask.append(node)
        absent[node] = before
        deadline = asked_s + (answer_s if before.answered else patience_s)
        if now_s >= deadline:
            lost.append(node)
        else:
            wakes.append(deadline)
    return Judgement(absent, frozenset(lost), tuple(ask), min(wakes, default=None))
