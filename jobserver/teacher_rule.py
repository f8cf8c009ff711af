"""How many teachers a job runs when it leaves that to its students. [pure]

The number that is asked for stands in the job's status, with its reason and since when; the rule only says when it
becomes another one. It rises as soon as the students' demand is above what the teachers can do, and falls when for
HOLD_OFF_S fewer would have done with a reserve, so that noise and short pauses (an evaluation, a checkpoint, a resize
of the students) cost no teacher its warm model. Rates and demands are measured by teachers and students.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import structs

from distill.listing import Listing
from distill.records import StudentRecord, TeacherRecord
from edl_collective.coord.records import JobKind, JobSpec, TeachersAsked
from jobserver.schedule import Wanted

#: teachers are asked for from so much more than the demand, and given back below so much more than it
RISE, FALL = 1.1, 1.3
#: how long fewer have to do before some are given back; between two steps up while a demand is not known
HOLD_OFF_S = 60.0
STEP_UP_S = 10.0
#: how often the rule looks: students and teachers write once a second at most
LOOK_EVERY_S = 2.0
#: a student whose demand is not known is starved for more than this part of its time
_STARVED = 0.5


@dataclass(frozen=True, slots=True)
class _Need:
    """Teachers of the job: at least `least` now, at most `most` are of use; `why` explains `least`."""

    least: int
    most: int
    why: str


def follows_students(spec: JobSpec) -> bool:
    """Whether the rule decides: the job serves, may have several sizes, and names none."""
    open_size = spec.np is None and spec.schedule is None and spec.min_np < spec.max_np
    return spec.kind is JobKind.TEACHER and open_size


def ask(spec: JobSpec, fleet: Listing, now_s: float, asked: TeachersAsked | None) -> TeachersAsked:
    """What is asked for now. `now_s`: wall time, `asked`: the answer before this one."""
    if asked is None:
        asked = TeachersAsked(spec.min_np, now_s, f"min_np {spec.min_np}, until students say what they need")
    need = _need(spec, fleet, now_s, asked)
    least, most = (min(max(n, spec.min_np), spec.max_np) for n in (need.least, need.most))
    if asked.np < least:
        return TeachersAsked(least, now_s, _bounded(need.why, need.least, spec))
    if asked.np <= most:
        return structs.replace(asked, fewer_since=None)
    since = now_s if asked.fewer_since is None else asked.fewer_since
    if now_s - since >= HOLD_OFF_S:
        return TeachersAsked(most, now_s, f"given back, {HOLD_OFF_S:g} s after fewer did: {need.why}")
    return structs.replace(asked, fewer_since=since)


def wanted(asked: TeachersAsked, now_s: float) -> Wanted:
    """The answer as reconcile takes it; it is looked at again when records may have changed."""
    return Wanted(asked.np, asked.why, now_s + LOOK_EVERY_S)


def _bounded(why: str, need: int, spec: JobSpec) -> str:
    return f"{why}; max_np is {spec.max_np}" if need > spec.max_np else why


def _need(spec: JobSpec, fleet: Listing, now_s: float, asked: TeachersAsked) -> _Need:
    own = [t for t in fleet.teachers.values() if t.job == spec.job]
    others = math.fsum(t.rate or 0.0 for t in fleet.teachers.values() if t.job != spec.job and not t.draining)
    rate = mean_rate(own) or mean_rate(fleet.teachers.values())
    students = list(fleet.students.values())
    if not students:
        return _Need(spec.min_np, spec.min_np, f"service {spec.service} has no students")
    if rate is None:
        return _Need(spec.min_np, asked.np, "no teacher has measured its rate yet")
    demand = math.fsum(s.demand or 0.0 for s in students)
    least, most = (math.ceil(max(0.0, demand * part - others) / rate) for part in (RISE, FALL))
    why = f"{_count(len(students), 'student')} of {spec.service} can use {demand:.0f} samples/s, a teacher answers"
    why += f" {rate:.0f}" + (f", teachers of others {others:.0f}" if others else "")
    waiting = [s for s in students if s.demand is None and s.starved > _STARVED]
    if not waiting:
        return _Need(least, most, why)
    why = f"{_count(len(waiting), 'student')} of {spec.service} wait and cannot say how much they need"
    ready = sum(not t.draining for t in own) >= asked.np and now_s - asked.since >= STEP_UP_S
    step = max(least, asked.np + 1 if ready else asked.np)
    return _Need(step, max(most, step), why)


def mean_rate(teachers: Iterable[TeacherRecord]) -> float | None:
    """Samples a second of one, on average over those that have measured theirs; None if none has."""
    rates = [t.rate for t in teachers if t.rate is not None and t.rate > 0]
    return math.fsum(rates) / len(rates) if rates else None


def starved_part(students: Iterable[StudentRecord]) -> float:
    """Of each second of a student, the part that it waits for teachers, on average; 0 without students."""
    parts = [s.starved for s in students]
    return math.fsum(parts) / len(parts) if parts else 0.0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
