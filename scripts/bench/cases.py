"""The cases of `bench.sh resize`: what is done in each, from which world, and what has to be reached. [pure]

Cases of one session run one after another on the same cluster, which saves starting everything anew for each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

SYSTEMS = ("edl", "horovod", "torchrun", "torchft")


class Act(StrEnum):
    """What is done to a system."""

    RESIZE = "resize"
    KILL = "kill"
    COORDINATOR = "coordinator"
    DRIVER = "driver"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    name: str
    session: str
    act: Act
    #: workers that train before
    before: int
    #: sizes that the world may have afterwards; torchrun, and a cluster with spares, replace a killed worker
    after: frozenset[int]
    #: what is asked for: of RESIZE, and of the resize that proves that a system works again
    to: int | None = None
    #: upper bounds of our own medians, by metric
    targets: tuple[tuple[str, float], ...] = ()
    text: str = ""

    def target(self, metric: str) -> float | None:
        """The upper bound of a metric, if one is named."""
        return dict(self.targets).get(metric)


@dataclass(frozen=True, slots=True)
class Session:
    """Cases that share a cluster."""

    name: str
    max_np: int
    frozen_mb: int = 0
    save_every: int = 20


SESSIONS = {
    session.name: session
    for session in (
        Session("small", 4),
        Session("eight", 8),
        # Half a gigabyte is not saved every half second by anybody.
        Session("large", 2, frozen_mb=500, save_every=200),
        Session("coordinator", 3),
        Session("driver", 3),
        Session("node", 4),
    )
}


def _resize(name: str, session: str, before: int, to: int, target: float | None = None, text: str = "") -> Case:
    targets = (("steps_lost", 0.0), *((("pause_s", target),) if target is not None else ()))
    return Case(name, session, Act.RESIZE, before, frozenset({to}), to, targets, text)


def _kill(before: int, session: str, target: float | None = None) -> Case:
    targets = (("steps_lost", 0.0), *((("pause_s", target),) if target is not None else ()))
    after = frozenset({before - 1, before})
    text = f"kill -9 of one worker of {before}"
    return Case(f"kill-{before}-{before - 1}", session, Act.KILL, before, after, None, targets, text)


_GAP = (("steps_lost", 0.0), ("pause_s", 0.10), ("works_again_s", 3.0))

CASES = (
    _resize("join-1-2", "small", 1, 2, 0.15, "a worker joins one"),
    _resize("join-3-4", "small", 3, 4, 0.15, "a worker joins three"),
    _resize("leave-4-3", "small", 4, 3, None, "one of four workers leaves"),
    _kill(4, "small", 0.30),
    _kill(2, "small"),
    _resize("resize-8-up", "eight", 7, 8, 0.95, "a worker joins seven"),
    _resize("resize-8-down", "eight", 8, 7, 0.95, "one of eight workers leaves"),
    _kill(8, "eight", 0.70),
    _resize("join-500mb", "large", 1, 2, 1.0, "a worker joins one that holds 500 MB of state"),
    Case("coordinator-kill", "coordinator", Act.COORDINATOR, 3, frozenset({2}), 2, _GAP, "kill -9 of the coordinator"),
    Case("driver-kill", "driver", Act.DRIVER, 3, frozenset({2}), 2, _GAP, "kill -9 of what forms the worlds"),
    Case("node-lost", "node", Act.NODE, 4, frozenset({2}), None, (("steps_lost", 0.0), ("pause_s", 3.0)),
         "one of two nodes falls silent, session time-out 2 s"),
)  # fmt: skip

#: a case of this name stands for these: what is named resize-8 in one word are a growth and a shrink
GROUPS = {"resize-8": ("resize-8-up", "resize-8-down")}
#: measured by another program, with simulated clients and no peer
RENDEZVOUS = {"rendezvous-64": 64, "rendezvous-256": 256}

QUICK_CASES = ("join-1-2", "join-3-4", "leave-4-3", "kill-4-3", "kill-2-1")
QUICK_SYSTEMS = ("edl", "horovod")

#: seconds that a session with one case takes about, its start included, and each case more; for the time left
_ESTIMATES = {"edl": (12.0, 5.0), "horovod": (12.0, 14.0), "torchrun": (15.0, 12.0), "torchft": (12.0, 8.0)}
#: what takes much longer than that: the gloo time-out, and cases that end with the limit
_SLOW = {("horovod", Act.KILL): 35.0, ("horovod", Act.NODE): 60.0, ("torchft", Act.COORDINATOR): 60.0}


def all_names() -> list[str]:
    """Every name that --cases takes."""
    return [*(case.name for case in CASES), *GROUPS, *RENDEZVOUS]


def selected(names: Iterable[str]) -> list[Case]:
    """The cases of these names in the order in which they run. ValueError for an unknown name."""
    wanted: set[str] = set()
    for name in names:
        if name not in all_names():
            raise ValueError(f"no case {name!r}: choose from {', '.join(all_names())}")
        wanted.update(GROUPS.get(name, (name,)))
    return [case for case in CASES if case.name in wanted]


@dataclass(frozen=True, slots=True)
class Trial:
    """One session of one system in one run."""

    run: int
    system: str
    session: Session
    cases: tuple[Case, ...]

    @property
    def estimate_s(self) -> float:
        """About how long it takes."""
        start, each = _ESTIMATES[self.system]
        slow = sum(_SLOW.get((self.system, case.act), 0.0) for case in self.cases)
        workers = max(case.before for case in self.cases)
        return start + workers + slow + each * len(self.cases)


def interleaved(cases: Iterable[Case], systems: Iterable[str], runs: int) -> Iterator[Trial]:
    """All trials: in each run every session, in each session one system after another, rotated from run to run."""
    cases, systems = list(cases), list(systems)
    for run in range(runs):
        turn = run % max(len(systems), 1)
        for session in SESSIONS.values():
            mine = tuple(case for case in cases if case.session == session.name)
            for system in systems[turn:] + systems[:turn]:
                if mine:
                    yield Trial(run, system, session, mine)
