"""The world of a generation: who is in it, and when the next one is formed. [pure]

`decide` is a function of the State that `state.observe` builds, the time and the Config. Invariants:
- a record is written (compare-and-set) before anybody hears of its generation, and generations only rise;
- a generation is formed only when each member of the one before waits at the gate or is gone for certain: its JobClient
  said so, does not know it, or the node is lost (absence.judge: missing in the store and no sign of life);
- all but the record is soft state: a successor that knows the record and hears the hellos decides the same.
This module does not read the store or hold connections (__main__ does) and relays no keys (relay does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edl_collective.coord.records import Member, Plan, PlannedWorker, Rendezvous
from edl_collective.driver.absence import judge
from edl_collective.driver.ranking import rank as rank
from edl_collective.driver.state import Seen, State, Told, Where
from edl_collective.messages import AbortGeneration, AskNode, DriverMessage, InterruptWorker, LeaveWorker, World

_GRACES = ("form_grace_s", "join_grace_s", "suspect_grace_s", "straggle_grace_s", "answer_grace_s", "absence_grace_s")


@dataclass(frozen=True, slots=True)
class Config:
    """`min_np`: no world is smaller. The graces are in seconds.

    form: how long a first world waits for all planned workers before min_np of them suffice.
    join: how long the first newcomer at the gate waits for the other planned ones, while training goes on.
    suspect: how long after one member's collective failed the others may take to fail, before they are aborted.
    straggle: how long after the first member came to the gate as asked the others may take, before they are aborted.
    answer: how long a JobClient whose node is missing may take to say that it lives, if the plan has let go of it.
    absence: how long the node of a planned member may be missing and silent, if no plan takes it out.
    """

    min_np: int = 1
    form_grace_s: float = 10.0
    join_grace_s: float = 2.0
    suspect_grace_s: float = 0.5
    straggle_grace_s: float = 5.0
    answer_grace_s: float = 0.25
    absence_grace_s: float = 15.0

    def __post_init__(self) -> None:
        if self.min_np < 1:
            raise ValueError(f"min_np is {self.min_np}: it must be at least 1")
        for name in _GRACES:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")


# ---- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """Compare-and-set the record at `version`; answer with RecordWritten or WriteConflict."""

    record: Rendezvous
    version: int


@dataclass(frozen=True, slots=True)
class Send:
    node: str
    message: DriverMessage


@dataclass(frozen=True, slots=True)
class Stop:
    """This driver has been replaced: end without another word."""


Effect = WriteRecord | Send | Stop


@dataclass(frozen=True, slots=True)
class Decision:
    """`state` takes the effects as done; `wake_at` (monotonic seconds): decide again then even if nothing happens."""

    state: State
    effects: tuple[Effect, ...]
    reason: str
    wake_at: float | None = None


# ---- decide ---------------------------------------------------------------------------------------------------------


def decide(state: State, now_s: float, config: Config) -> Decision:
    """What is to be done now. Applying it twice, or stopping half-way and deciding again, reaches the same end."""
    if state.fenced:
        return Decision(state, (Stop(),), "another driver leads this job")
    if state.writing is not None:
        return Decision(state, (), f"writing generation {state.writing.generation}")
    plan, nodes = state.plan, state.nodes
    if plan is None or nodes is None:
        return Decision(state, (), "waiting for the first plan")
    state, answers = _answer(state, plan)
    planned_on = frozenset(p.node for p in plan.everybody if p.worker in {m.worker for m in state.record.members})
    absence = judge(state, planned_on, now_s, config.answer_grace_s, config.absence_grace_s)
    state = replace(state, absent=absence.absent)
    questions = tuple(Send(node, AskNode()) for node in absence.ask)
    view = _View(state, plan, nodes, absence.lost)
    state = _since(state, view, now_s)
    # said first: who is at the gate still is not let into a world that is lost
    state, aborts = _abort(state, view, now_s, config)
    if view.unheard:
        reason = f"waiting for the JobClient of node {', '.join(view.unheard)}"
        return Decision(state, (*questions, *aborts, *answers), reason, absence.wake_at)
    state, interrupts, reason, wake_at = _form(state, view, now_s, config)
    wake_at = min((t for t in (wake_at, absence.wake_at) if t is not None), default=None)
    return Decision(state, (*questions, *aborts, *answers, *interrupts), reason, wake_at)


def planned_members(plan: Plan, members: Sequence[Member]) -> frozenset[str]:
    """Those of `members` that `plan` still holds. A job that is ending keeps its finished workers in the plan."""
    return frozenset(m.worker for m in members) & {p.worker for p in plan.everybody}


class _View:
    """What the state says about the members of the record and the planned workers; computed once per decision."""

    def __init__(self, state: State, plan: Plan, nodes: Mapping[str, str], lost: frozenset[str]) -> None:
        self.state, self.plan, self.nodes, self.lost = state, plan, nodes, lost
        members = state.record.members
        #: nodes of members that are alive, or may be, but have not said yet what they know
        self.unheard = sorted({m.node for m in members if m.node not in lost and not self.heard(m.node)})
        finished = [m for m in members if m.worker in state.finished]
        #: those whose end begins the end of the job; none in a new attempt, whose plan holds no member of this world
        self.done = [] if plan.workers and not planned_members(plan, members) else finished
        self.gone = [m for m in members if m.worker not in state.finished and self._is_gone(m)]
        out = {m.worker for m in (*finished, *self.gone)}
        self.live = [m.worker for m in members if m.worker not in out]
        out |= state.finished
        self.survivors = self._seated([p.worker for p in plan.workers], [p.worker for p in plan.spares])
        self.removed = [w for w in self.live if w not in self.survivors]
        #: at the gate, wanted and not members; none while the job is ending
        self.newcomers = [] if self.done else self._newcomers([p for p in plan.everybody if p.worker not in out])
        #: planned workers that may still come to the gate, where a seat waits for them
        self.awaited = [
            p.worker
            for p in plan.workers
            if self.ready < len(plan.workers)
            and p.worker not in {*self.live, *out, *state.exits}
            and p not in self.newcomers
            and p.node in nodes
        ]
        self.back = [w for w in self.live if state.seen[w].where is Where.GATE] if not self.unheard else []
        self.away = [w for w in self.live if w not in self.back] if not self.unheard else []

    def _seated(self, planned: Sequence[str], spares: Sequence[str]) -> list[str]:
        """Members that stay: the planned ones, and as many spares as took the places of others."""
        free = len(planned) - sum(w in planned for w in self.live)
        promoted = [w for w in self.live if w in spares][: max(0, free)]
        return [w for w in self.live if w in planned or w in promoted]

    def _newcomers(self, candidates: Sequence[PlannedWorker]) -> list[PlannedWorker]:
        """Planned workers first, then spares, as there are seats; a world that nobody survives is the leader's."""
        ready = [p for p in candidates if p.worker not in self.live and self._at_gate(p)]
        if not self.survivors:
            ready = [p for p in ready if p in self.plan.workers]
        return ready[: max(0, len(self.plan.workers) - len(self.survivors))]

    def heard(self, node: str) -> bool:
        """Connected, and of the incarnation in the store if there is one."""
        said = self.state.heard.get(node)
        return said is not None and said == self.nodes.get(node, said)

    def _is_gone(self, member: Member) -> bool:
        """Certainly: its node is lost, or heard and does not know it (any more)."""
        if member.node in self.lost:
            return True
        seen = self.state.seen.get(member.worker)
        return self.heard(member.node) and (seen is None or seen.node != member.node)

    def _at_gate(self, planned: PlannedWorker) -> bool:
        seen = self.state.seen.get(planned.worker)
        return seen is not None and seen.node == planned.node and seen.where is Where.GATE and self._takes(seen.node)

    def _takes(self, node: str) -> bool:
        """Whether newcomers of the node may join: it is there and has been heard."""
        return node in self.nodes and self.heard(node)

    @property
    def ready(self) -> int:
        return len(self.survivors) + len(self.newcomers)

    def enough(self, min_np: int) -> bool:
        """Those that have finished count: the rest of a world that is ending may end in a smaller one."""
        return self.ready > 0 and self.ready + len(self.done) >= min_np

    @property
    def losses(self) -> list[Member]:
        return [m for m in self.gone if m.worker not in self.state.leaving]


def _tell(state: State, told: Sequence[tuple[Told, DriverMessage]]) -> tuple[State, tuple[Effect, ...]]:
    """Send what was not sent yet on the present connections."""
    new = [(key, message) for key, message in told if key not in state.told and key[0] in state.heard]
    if not new:
        return state, ()
    state = replace(state, told=state.told | {key for key, _ in new})
    return state, tuple(Send(key[0], message) for key, message in new)


def _answer(state: State, plan: Plan) -> tuple[State, tuple[Effect, ...]]:
    """Repeat the record to whom it concerns, and let go those at the gate that the plan has no place for."""
    record = state.record
    members = {m.worker for m in record.members}
    planned = {p.worker for p in plan.workers}
    fresh = {p.worker for p in plan.spares if p.worker in members or not _was_placed(state, p.worker)}
    told: list[tuple[Told, DriverMessage]] = []
    if record.generation:
        told += [((node, "world", "", record.generation), World(record=record)) for node in state.heard]
    seen = dict(state.seen)
    leaving = set(state.leaving)
    for worker, s in state.seen.items():
        if s.where is not Where.GATE:
            continue
        if worker in members and s.generation < record.generation:
            seen[worker] = Seen(s.node, Where.ASSIGNED, record.generation)
        elif worker not in planned | fresh and (s.generation or _number(worker) < plan.next_worker):
            reason = f"plan {plan.revision}: {plan.reason}"
            order = LeaveWorker(worker=worker, reason=reason, last=not planned)
            told.append(((s.node, "leave", worker, s.generation), order))
            leaving.add(worker)
    state, effects = _tell(state, told)
    return replace(state, seen=seen, leaving=frozenset(leaving)), effects


def _was_placed(state: State, worker: str) -> bool:
    """Whether it holds the state of an older world: such a worker is no spare, from which a later world might start."""
    seen = state.seen.get(worker)
    return seen is not None and seen.generation > 0


def _number(worker: str) -> float:
    """Worker ids are w<number>, rising: one below next_worker that is not planned has been planned away.

    Above it, a JobClient has seen a newer plan than we have: infinity for what cannot be compared.
    """
    return int(worker[1:]) if worker[:1] == "w" and worker[1:].isdecimal() else float("inf")


def _abort(state: State, view: _View, now_s: float, config: Config) -> tuple[State, tuple[Effect, ...]]:
    """Collectives of a generation that lost a member cannot complete, nor those of a world that others left behind."""
    generation = state.record.generation
    told: list[tuple[Told, DriverMessage]] = []
    overdue = _overdue_at(state, config)
    if view.losses or (view.away and overdue is not None and now_s >= overdue):
        told += [((node, "abort", "", generation), AbortGeneration(generation=generation)) for node in state.heard]
    else:
        stale = {s.node for s in state.seen.values() if s.where is not Where.GATE and s.generation < generation}
        told += [((n, "abort", "", generation - 1), AbortGeneration(generation=generation - 1)) for n in stale]
    return _tell(state, told)


def _overdue_at(state: State, config: Config) -> float | None:
    """When those who have not left the world that others left are aborted; None while nobody is missed."""
    if state.suspect_since is None:
        return None
    return state.suspect_since + (config.straggle_grace_s if _asked(state) else config.suspect_grace_s)


def _asked(state: State) -> bool:
    return any(kind == "interrupt" for _, kind, _, _ in state.told)


def _form(
    state: State, view: _View, now_s: float, config: Config
) -> tuple[State, tuple[Effect, ...], str, float | None]:
    """Form the next generation, or ask its members to the gate, or say what is waited for."""
    state, pressing, wake_at = _pressing(state, view, now_s, config)
    if not pressing:
        return state, (), _calm(state, view), wake_at
    told: list[tuple[Told, DriverMessage]] = []
    generation = state.record.generation
    for worker in view.away:
        message = InterruptWorker(worker=worker, generation=generation)
        told.append(((state.seen[worker].node, "interrupt", worker, generation), message))
    state, effects = _tell(state, told)
    if view.away:
        overdue = _overdue_at(state, config)
        wake_at = overdue if overdue is not None and now_s < overdue else None
        return state, effects, f"{pressing}: waiting for {', '.join(view.away)} at the gate", wake_at
    if not view.enough(config.min_np):
        reason = f"{pressing}: holding with {view.ready} of at least {config.min_np} workers"
        return state, effects, reason, wake_at
    if not view.survivors and view.awaited:
        deadline = (state.waiting_since or 0.0) + config.form_grace_s
        if now_s < deadline:
            reason = f"{pressing}: waiting for {', '.join(view.awaited)} to get ready"
            return state, effects, reason, deadline
    record = _next(state, view)
    reason = f"generation {record.generation} with {len(record.members)} workers: {record.cause}"
    return replace(state, writing=record), (*effects, WriteRecord(record, state.version)), reason, None


def _pressing(state: State, view: _View, now_s: float, config: Config) -> tuple[State, str, float | None]:
    """Why a new generation must be formed now, empty if it need not; with the time to look again."""
    everybody_back = bool(view.back) and len(view.back) == len(view.live)
    if view.done:
        pressed = view.live and (view.gone or everybody_back)
        return state, "collectives failed while others had finished" if pressed else "", None
    if view.gone:
        return state, _loss_text(view, view.gone), None
    if view.removed:
        return state, f"plan {view.plan.revision} removes {', '.join(view.removed)}", None
    asked = _asked(state)
    waits = []
    if state.suspect_since is not None:
        waits.append(state.suspect_since + config.suspect_grace_s)
        if asked or everybody_back or now_s >= waits[-1]:
            return state, f"{', '.join(view.back)} left generation {state.record.generation}", None
    if state.waiting_since is not None and (view.enough(config.min_np) or not view.live):
        waits.append(state.waiting_since + config.join_grace_s)
        if not view.live or not view.awaited or asked or now_s >= waits[-1]:
            return state, f"{', '.join(p.worker for p in view.newcomers)} ready", None
    return state, "", min(waits, default=None)


def _since(state: State, view: _View, now_s: float) -> State:
    """Start or clear the two waits."""
    missed = bool(view.back) or bool(view.gone and view.away)
    waiting = (now_s if state.waiting_since is None else state.waiting_since) if view.newcomers else None
    suspect = (now_s if state.suspect_since is None else state.suspect_since) if missed else None
    return replace(state, waiting_since=waiting, suspect_since=suspect)


def _calm(state: State, view: _View) -> str:
    generation = state.record.generation
    if view.done:
        return f"generation {generation}: training has finished on {len(view.done)} workers"
    joining = [w for w in view.live if state.seen[w].where is Where.ASSIGNED]
    if joining:
        return f"generation {generation}: {', '.join(joining)} joining"
    if not view.live:
        return f"waiting for {', '.join(view.awaited) or 'planned workers'} to get ready"
    return f"generation {generation}: {len(view.live)} workers running"


def _next(state: State, view: _View) -> Rendezvous:
    """The record of the next generation: survivors keep the lowest ranks, then newcomers; grouped by node."""
    planned = {p.worker: p.node for p in view.plan.everybody}
    # of those who were in some world before, the one that saw the newest holds the most recent state
    newcomers = sorted(view.newcomers, key=lambda p: -state.seen[p.worker].generation)
    order = [*view.survivors, *(p.worker for p in newcomers)]
    return Rendezvous(
        generation=state.record.generation + 1,
        epoch=state.epoch,
        members=rank([(worker, planned[worker]) for worker in order]),
        cause=_cause(state, view),
        plan_revision=view.plan.revision,
    )


def _cause(state: State, view: _View) -> str:
    """Why the world changes, for people."""
    if not state.record.members:
        return "start"
    parts = [_loss_text(view, view.losses)] if view.losses else []
    if not view.survivors:
        return "restart: " + (", ".join(parts) or "no member was left")
    gone_by_plan = len(view.gone) > len(view.losses)
    spares = [p.worker for p in view.newcomers if p in view.plan.spares]
    if len(view.newcomers) > len(spares) or view.removed or gone_by_plan:
        parts.append(f"plan: {view.plan.reason}")
    if spares:
        parts.append(f"{', '.join(spares)} stood by")
    return ", ".join(parts) or f"a collective failed on worker {', '.join(view.back)}, no loss known"


def _loss_text(view: _View, lost: Sequence[Member]) -> str:
    parts = {}
    for member in lost:
        if member.node in view.lost:
            parts[f"node {member.node} is gone"] = True
        else:
            detail = view.state.exits.get(member.worker) or "is gone"
            parts[f"worker {member.worker} {detail}"] = True
    return ", ".join(parts)
