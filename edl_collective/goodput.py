"""Where the time of a job goes: every second of it has one kind. [pure]

Each process counts what it does with its time, so that any of them can speak for the job when it becomes rank 0. Who
speaks next takes up the sum of all before (`carry`), and what nobody counted is told by what came of it: steps that
have to be done again, or nobody there to train.
"""

from collections.abc import Mapping
from types import MappingProxyType

from edl_collective.coord.records import Progress, Spent

#: pending: until the first worker starts; start: until the first step; train: steps; data, teacher: waiting for the
#: loader, and in it for teachers; checkpoint: waiting for a save; between: what the script does between steps, such as
#: evaluation; detect, re_form, restore: parts of a resize; recompute: steps that were done again; down: nobody trained
KINDS = (
    "pending", "start", "train", "data", "teacher", "checkpoint", "between",
    "detect", "re_form", "restore", "recompute", "down",
)  # fmt: skip
#: which kind the phases of a resize are (edl_collective.phases)
OF_PHASE = MappingProxyType(
    {
        "shutdown": "detect",
        "gate": "re_form",
        "init": "re_form",
        "sync": "restore",
        "batch": "restore",
        "step": "train",
    }
)


class Stopwatch:
    """The time of one process, kind by kind, without a gap. Times are of one monotonic clock, in seconds."""

    def __init__(self, now_s: float) -> None:
        self._until_s = now_s
        self._seconds: dict[str, float] = {}
        self._by, self._began_at, self._began_step, self._fresh = "", 0.0, 0, True

    def restart(self, now_s: float) -> None:
        """What has passed since the last call is not the job's time."""
        self._until_s = now_s

    def speak(self, by: str, step: int, now_s: float, wall_s: float, *, fresh: bool) -> None:
        """From what was counted last on, this process speaks for the job."""
        self._by, self._began_step, self._fresh = by, step, fresh
        self._began_at = wall_s - (now_s - self._until_s)
        self._seconds = {}

    def spend(self, kind: str, now_s: float, most_s: float | None = None) -> None:
        """What has passed since the last call was spent on `kind`; if given, only the first `most_s` of it."""
        seconds = max(0.0, now_s - self._until_s)
        if most_s is not None:
            seconds = min(seconds, max(0.0, most_s))
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds
        self._until_s += seconds

    def spend_pause(self, spans: Mapping[str, float], now_s: float) -> None:
        """What has passed was a resize; `spans`: seconds of its phases, empty for who had no step before."""
        for phase, seconds in spans.items():
            self.spend(OF_PHASE[phase], now_s, seconds)
        self.spend("train" if spans else "restore", now_s)

    def spent(self) -> Spent:
        seconds = {kind: round(value, 3) for kind, value in self._seconds.items()}
        return Spent(
            by=self._by, began_at=self._began_at, began_step=self._began_step, fresh=self._fresh, seconds=seconds
        )


def carry(before: Progress | None, now: Spent) -> dict[str, float]:
    """What was spent before `now` began to be counted; `before`: the last report that there is."""
    if before is None or before.spent is None:
        return {}
    if before.spent.by == now.by:
        return dict(before.earlier)
    total = added(before.earlier, before.spent.seconds)
    steps = before.step - before.spent.began_step
    lost_steps = max(0, before.step - now.began_step)
    if lost_steps and steps > 0:
        lost_s = min(total.get("train", 0.0), lost_steps * before.spent.seconds.get("train", 0.0) / steps)
        total = added(total, {"train": -lost_s, "recompute": lost_s})
    gap_s = max(0.0, now.began_at - before.last_step_at)
    return added(total, {"down" if now.fresh else "train": round(gap_s, 3)})


def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The sum, kind by kind."""
    return {kind: round(one.get(kind, 0.0) + other.get(kind, 0.0), 3) for kind in KINDS if kind in one or kind in other}
