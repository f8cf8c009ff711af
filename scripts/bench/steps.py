"""Logs of completed steps, and what they say about a pause: how long it was and how many steps were lost. [pure]

A process notes for each step when it was completed and when the process entered the world that it was done in. So the
steps after an event divide, without any agreement between the processes, into those of worlds that were entered before
the event (the old world) and after it. The new world is complete when each of its ranks has completed a step.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


class Step(NamedTuple):
    """One process has completed a step. Times are of the machine's monotonic clock."""

    at_s: float
    #: when the process entered the world of this step
    entered_s: float
    #: steps completed in the job's life, this one included
    number: int
    rank: int
    #: ranks in the world
    size: int
    pid: int


class Pause(NamedTuple):
    """What an event cost."""

    #: from the last step completed in the old world to the first time when all ranks of a new one have completed one
    pause_s: float
    #: completed steps that were done again
    steps_lost: int
    #: from the event to the end of the pause, what came before the pause included
    total_s: float
    #: ranks of the new world
    size: int


def format_step(at_s: float, entered_s: float, number: int, rank: int, size: int) -> bytes:
    """One line of a log."""
    return b"%.6f %.6f %d %d %d\n" % (at_s, entered_s, number, rank, size)


def parse_steps(log: bytes, pid: int) -> list[Step]:
    """The steps of a process. What follows the last newline was torn by SIGKILL. ValueError for anything else."""
    found = []
    for line in log.split(b"\n")[:-1]:
        at_s, entered_s, number, rank, size = line.split()
        found.append(Step(float(at_s), float(entered_s), int(number), int(rank), int(size), pid))
    return found


def pause_after(steps: Iterable[Step], event_s: float, sizes: Collection[int]) -> Pause | None:
    """The pause that an event at `event_s` caused; None while no new world of one of these `sizes` is complete."""
    steps = sorted(steps)
    old = [step for step in steps if step.entered_s <= event_s]
    if not old:
        raise ValueError(f"no step was completed in a world entered before {event_s:.3f}: wait for one, then act")
    completed = _first_complete([s for s in steps if s.entered_s > event_s and s.size in sizes])
    if completed is None:
        return None
    end, world = completed
    # A member of the old world that is still in it (frozen, say) may wake up and complete a step much later.
    last_old_s = max(step.at_s for step in old if step.at_s <= end.at_s)
    furthest = max(step.number for step in old if step.at_s <= last_old_s)
    lost = max(0, furthest + 1 - min(step.number for step in world))
    return Pause(end.at_s - last_old_s, lost, end.at_s - event_s, end.size)


def _first_complete(steps: Sequence[Step]) -> tuple[Step, list[Step]] | None:
    """The step by which each rank of a world had completed one, and the first steps of all its ranks."""
    first: dict[int, dict[int, Step]] = {}
    for step in steps:
        ranks = first.setdefault(step.size, {})
        ranks.setdefault(step.rank, step)
        if len(ranks) == step.size:
            return step, list(ranks.values())
    return None


def longest_gap_s(steps: Iterable[Step], since_s: float, until_s: float) -> float:
    """The longest time, touching [since_s, until_s], in which no process completed a step. ValueError with no steps."""
    times = sorted(step.at_s for step in steps if step.at_s <= until_s)
    if not times:
        raise ValueError(f"no step was completed before {until_s:.3f}")
    # What is still open at the end of the window counts as far as it goes.
    gaps = [after - before for before, after in pairwise([*times, until_s]) if after >= since_s]
    return max(gaps)


def redone(steps: Iterable[Step], since_s: float) -> int:
    """How many step numbers completed before `since_s` were completed again in worlds entered after it."""
    steps = list(steps)
    before = {step.number for step in steps if step.at_s <= since_s}
    return len(before & {step.number for step in steps if step.entered_s > since_s})
