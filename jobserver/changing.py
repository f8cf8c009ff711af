"""The changing script of the start script: a rule for jobs that say neither how many workers they want nor when. [pure]

Invariant: a job of teachers, or one that says np or schedule or has begun, is never touched; filling in twice changes
nothing.
"""

from dataclasses import dataclass

from msgspec.structs import replace

from edl_collective.coord.job_spec import ChangeRule, JobKind, JobSpec, Schedule


@dataclass(frozen=True, slots=True)
class Changing:
    """`rule` counts workers; `max_np` is the number of slots that the start script describes."""

    rule: ChangeRule
    max_np: int


def fill_in(spec: JobSpec, changing: Changing | None) -> JobSpec:
    """`spec` with the rule as its schedule and at most the described slots, if it leaves its size open."""
    if changing is None or spec.np is not None or spec.schedule is not None or spec.kind is JobKind.TEACHER:
        return spec
    max_np = min(spec.max_np, max(spec.min_np, changing.max_np))
    return replace(spec, schedule=Schedule(change=changing.rule), max_np=max_np)
