"""The ledger of a job's time, from its records: the kinds add up to all of its time. [pure]"""

from edl_collective.coord.records import Phase
from edl_collective.goodput import added
from jobserver.snapshot import Job

#: a job that has not told of a step for so long, and should run, is not training
SILENT_S = 5.0


def goodput(job: Job, now_s: float) -> dict[str, float]:
    """Seconds by kind since the job was submitted, to `now_s` or its end (wall time)."""
    status = job.status.value if job.status else None
    submitted_s = job.spec.value.submitted_at
    end_s = status.since if status is not None and status.phase.terminal else now_s
    started_s = end_s if status is None or status.started_at is None else min(status.started_at, end_s)
    ledger = {"pending": max(0.0, started_s - submitted_s)}
    progress = job.progress
    if progress is None or progress.spent is None:
        return added(ledger, {"start": max(0.0, end_s - started_s)})
    ledger = added(ledger, added(progress.earlier, progress.spent.seconds))
    tail_s = max(0.0, end_s - progress.last_step_at)
    runs = status is not None and status.phase in (Phase.RUNNING, Phase.FINISHING)
    ended = status is not None and status.phase.terminal
    ledger = added(ledger, {"between" if ended else "train" if runs and tail_s < SILENT_S else "down": tail_s})
    rest_s = (end_s - submitted_s) - sum(ledger.values())
    return added(ledger, {"start": max(0.0, rest_s)})


def train_part(ledger: dict[str, float]) -> float | None:
    """The part of the job's time that was training; None before it has any."""
    total_s = sum(ledger.values())
    return None if total_s <= 0 else ledger.get("train", 0.0) / total_s
