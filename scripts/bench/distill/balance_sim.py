"""Case balance-sim: how much of what teachers could usefully do they do, while teachers and students come and go.

Simulated, no process and no clock: 8 students, 40 teachers whose rates differ by a factor of 8, demands that together
are near what the teachers can do. Each change hits the assignment that stands; only REACTION_S later the next one does.
Rates and demands reach the balance with an error. A student spreads its requests so that its teachers are equally
busy, as a client does that asks the one with the shortest wait. The ratio is samples answered over the samples that
could have been: the smaller of all demands and all rates, which no assignment exceeds. The other system is the rule of
Paddle EDL's discovery server (ceil and floor of counts), on the same events.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.rows import Row, row
from distill.balance import Share, balance
from distill.records import MATERIAL, StudentRecord, TeacherRecord

CASE = "balance-sim"
STUDENTS, TEACHERS = 8, 40
#: samples a second of a teacher
SLOWEST, FASTEST = 50.0, 400.0
#: simulated: length of a run, mean time between two changes, and from a change to the next assignment
LENGTH_S, BETWEEN_S, REACTION_S = 1800.0, 15.0, 1.0
#: of the rates and demands that records tell: they are written again when they are further off
ERROR = MATERIAL
#: every so many changes concern a student, the others a teacher
STUDENT_CHANGES = 5
_ROUNDS = 30

Edges = Mapping[str, Sequence[str]]
#: (rates and demands as told, the present assignment) -> the next one
Rule = Callable[[Mapping[str, float], Mapping[str, float], Edges], Edges]


@dataclass
class World:
    """Who is there, by name: teachers with their rates, students with their demands."""

    chance: random.Random
    rates: dict[str, float] = field(default_factory=dict)
    demands: dict[str, float] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        for _ in range(TEACHERS):
            self.add_teacher()
        for _ in range(STUDENTS):
            self.add_student()

    def change(self) -> None:
        """One that is there leaves, or another one comes; the numbers stay near where they began."""
        if self.chance.random() < 1 / STUDENT_CHANGES:
            self._one_of(self.demands, STUDENTS, self.add_student)
        else:
            self._one_of(self.rates, TEACHERS, self.add_teacher)

    def _one_of(self, there: dict[str, float], usual: int, add: Callable[[], None]) -> None:
        if self.chance.random() < len(there) / (2 * usual):
            there.pop(self.chance.choice(sorted(there)))
        else:
            add()

    def add_teacher(self) -> None:
        self._count += 1
        self.rates[f"t{self._count}"] = math.exp(self.chance.uniform(math.log(SLOWEST), math.log(FASTEST)))

    def add_student(self) -> None:
        self._count += 1
        usual = TEACHERS / STUDENTS * (FASTEST - SLOWEST) / math.log(FASTEST / SLOWEST)  # the mean rate, times 5
        self.demands[f"s{self._count}"] = usual * self.chance.uniform(0.5, 1.5)

    def told(self, figures: Mapping[str, float]) -> dict[str, float]:
        """As records tell them, in no order."""
        names = self.chance.sample(sorted(figures), len(figures))
        return {name: figures[name] * self.chance.uniform(1 - ERROR, 1 + ERROR) for name in names}


class ByBalance:
    """The rule of distill.balance, with what students say of themselves."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}

    def __call__(self, rates: Mapping[str, float], demands: Mapping[str, float], _now: Edges) -> Edges:
        teachers = [TeacherRecord(teacher=name, url="http://h:1", model="m", rate=rate) for name, rate in rates.items()]
        self._shares = balance(teachers, [self._record(name, demand) for name, demand in demands.items()])
        return {name: share.teachers for name, share in self._shares.items()}

    def _record(self, name: str, demand: float) -> StudentRecord:
        share = self._shares.get(name, Share())
        return StudentRecord(student=name, demand=demand, teachers=share.teachers, shared=share.shared)


def by_counts(rates: Mapping[str, float], demands: Mapping[str, float], now: Edges) -> Edges:
    """At most ceil(students / teachers) students for a teacher, floor(teachers / students), but 1, for a student."""
    for_teacher = math.ceil(len(demands) / len(rates))
    for_student = max(1, len(rates) // len(demands))
    users = dict.fromkeys(rates, 0)
    edges: dict[str, list[str]] = {}
    for name in demands:
        edges[name] = [t for t in now.get(name, ()) if t in rates][:for_student]
        for teacher in edges[name]:
            users[teacher] += 1
    for own in edges.values():
        for teacher in users:
            if len(own) < for_student and teacher not in own and users[teacher] < for_teacher:
                own.append(teacher)
                users[teacher] += 1
    return edges


def answered(rates: Mapping[str, float], demands: Mapping[str, float], edges: Edges) -> float:
    """Samples a second in all, when every student keeps its own teachers equally busy."""
    flows = {name: dict.fromkeys((t for t in edges.get(name, ()) if t in rates), 0.0) for name in demands}
    load = dict.fromkeys(rates, 0.0)
    for _ in range(_ROUNDS):
        for name, own in flows.items():
            for teacher, flow in own.items():
                load[teacher] -= flow
            own.update(_spread(demands[name], {t: (rates[t], load[t]) for t in own}))
            for teacher, flow in own.items():
                load[teacher] += flow
    return math.fsum(min(load[teacher], rate) for teacher, rate in rates.items())


def _spread(demand: float, teachers: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """`demand` over teachers with (rate, load of others), so that those that get some are equally busy."""
    order = sorted(teachers, key=lambda t: teachers[t][1] / teachers[t][0])
    chosen: list[str] = []
    level = 0.0
    for teacher in order:
        rate, load = teachers[teacher]
        if chosen and load / rate >= level:
            break
        chosen.append(teacher)
        level = (demand + sum(teachers[t][1] for t in chosen)) / sum(teachers[t][0] for t in chosen)
    return {t: level * teachers[t][0] - teachers[t][1] if t in chosen else 0.0 for t in teachers}


def simulate(rule: Rule, seed: int, length_s: float = LENGTH_S) -> float:
    """The part of what could usefully be answered that was, in one run."""
    world = World(random.Random(seed))
    noise = random.Random(seed + 1)
    edges: Edges = rule(world.told(world.rates), world.told(world.demands), {})
    done = could = at_s = 0.0
    while at_s < length_s:
        quiet_s = noise.expovariate(1 / BETWEEN_S)
        done += min(REACTION_S, quiet_s) * answered(world.rates, world.demands, edges)
        if quiet_s > REACTION_S:
            edges = rule(world.told(world.rates), world.told(world.demands), edges)
            done += (quiet_s - REACTION_S) * answered(world.rates, world.demands, edges)
        could += quiet_s * min(sum(world.rates.values()), sum(world.demands.values()))
        at_s += quiet_s
        world.change()
    return done / could


def balance_sim(runs: int = 5, length_s: float = LENGTH_S) -> list[Row]:
    """A row for each rule: its ratio in `runs` runs, each of both rules on the same events."""
    rules: dict[str, Callable[[], Rule]] = {"edl": ByBalance, "ceil-floor": lambda: by_counts}
    ratios: dict[str, list[float]] = {system: [] for system in rules}
    for seed in range(runs):
        for system, make in rules.items():
            ratios[system].append(simulate(make(), seed, length_s))
    return [row(CASE, system, "ratio", "1", found) for system, found in ratios.items()]
