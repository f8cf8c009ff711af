"""How much students can get from the teachers that they have, all at once: a small maximum flow for tests."""

from collections import deque
from collections.abc import Mapping, Sequence

from distill.balance import Share
from distill.records import StudentRecord, TeacherRecord


def teacher(name: str, rate: float | None = 100.0, *, draining: bool = False) -> TeacherRecord:
    return TeacherRecord(
        teacher=name, url=f"http://127.0.0.1:{9000 + len(name)}", model="m", rate=rate, draining=draining
    )


def student(name: str, demand: float | None = None, most: int | None = None, has: Share | None = None) -> StudentRecord:
    has = has or Share()
    return StudentRecord(student=name, max_teachers=most, demand=demand, teachers=has.teachers, shared=has.shared)


def taken_up(students: Sequence[StudentRecord], shares: Mapping[str, Share]) -> list[StudentRecord]:
    """The records of the students once each has what `shares` says."""
    return [student(s.student, s.demand, s.max_teachers, shares[s.student]) for s in students]


def greatest_flow(rates: Mapping[str, float], wants: Mapping[str, float], edges: Mapping[str, Sequence[str]]) -> float:
    """Samples a second in all: at most `wants` of each student, at most `rates` of each teacher, along `edges`."""
    free: dict[str, dict[str, float]] = {"source": {}, "sink": {}}

    def join(a: str, b: str, size: float) -> None:
        free.setdefault(a, {})[b] = size
        free.setdefault(b, {}).setdefault(a, 0.0)

    for name, want in wants.items():
        join("source", f"s:{name}", want)
        for other in edges[name]:
            join(f"s:{name}", f"t:{other}", want)
    for name, rate in rates.items():
        join(f"t:{name}", "sink", rate)
    total = 0.0
    while (way := _way(free)) is not None:
        amount = min(free[a][b] for a, b in way)
        for a, b in way:
            free[a][b] -= amount
            free[b][a] += amount
        total += amount
    return total


def _way(free: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]] | None:
    came: dict[str, str] = {"source": ""}
    queue = deque(["source"])
    while queue:
        at = queue.popleft()
        for to, size in free[at].items():
            if size > 1e-9 and to not in came:
                came[to] = at
                queue.append(to)
    if "sink" not in came:
        return None
    way = []
    at = "sink"
    while at != "source":
        way.append((came[at], at))
        at = came[at]
    return way
