"""Every second of a job has one kind, whoever counted it."""

from dataclasses import replace

import pytest

from edl_collective.coord.records import JobSpec, JobStatus, Phase, Progress, Spent
from edl_collective.goodput import KINDS, OF_PHASE, Stopwatch, carry
from edl_collective.phases import PHASES
from jobserver.goodput import goodput, train_part
from jobserver.snapshot import At, Job


def watched() -> Stopwatch:
    watch = Stopwatch(100.0)
    watch.speak("w1:1", step=0, now_s=100.0, wall_s=5000.0, fresh=True)
    return watch


def progress(step: int, last_step_at: float, spent: Spent, **earlier: float) -> Progress:
    return Progress(
        generation=1, world_size=1, epoch=0, step=step, last_step_at=last_step_at, spent=spent, earlier=earlier
    )


def spent(by: str = "w1:1", began_at: float = 0.0, began_step: int = 0, fresh: bool = False, **seconds: float) -> Spent:
    return Spent(by=by, began_at=began_at, began_step=began_step, fresh=fresh, seconds=seconds)


def test_time_is_spent_without_a_gap() -> None:
    watch = watched()
    watch.spend("data", 101.0)
    watch.spend("train", 103.5)
    watch.spend("teacher", 104.0, most_s=0.2)
    watch.spend("data", 104.0)
    assert watch.spent().seconds == {"data": 1.3, "train": 2.5, "teacher": 0.2}
    assert sum(watch.spent().seconds.values()) == pytest.approx(4.0)


def test_a_pause_goes_to_its_phases() -> None:
    watch = watched()
    spans = dict.fromkeys(PHASES, 0.5)
    watch.spend_pause(spans, 103.0)
    assert watch.spent().seconds == {"detect": 0.5, "re_form": 1.0, "restore": 1.0, "train": 0.5}
    assert set(OF_PHASE) == set(PHASES)
    assert set(OF_PHASE.values()) <= set(KINDS)


def test_who_takes_over_counts_from_its_own_last_step() -> None:
    watch = Stopwatch(100.0)
    watch.spend("train", 110.0)
    watch.speak("w2:2", step=7, now_s=112.0, wall_s=5000.0, fresh=False)
    assert (watch.spent().began_at, watch.spent().began_step, watch.spent().seconds) == (4998.0, 7, {})


def test_the_next_speaker_takes_up_the_sum() -> None:
    before = progress(10, 1000.0, spent(train=5.0, data=1.0), start=2.0, train=1.0)
    assert carry(before, spent("w2:2", began_at=1000.4, began_step=12)) == {"start": 2.0, "train": 6.4, "data": 1.0}
    assert carry(before, spent(began_at=0.0)) == {"start": 2.0, "train": 1.0}, "the same speaker"
    assert carry(None, spent()) == {}


def test_steps_that_are_done_again_were_no_training() -> None:
    before = progress(10, 1000.0, spent(train=5.0))
    after = spent("w5:3", began_at=1020.0, began_step=4, fresh=True)
    assert carry(before, after) == {"train": 2.0, "recompute": 3.0, "down": 20.0}


def job(phase: Phase = Phase.RUNNING, since: float = 110.0, now: Progress | None = None) -> Job:
    spec = JobSpec(job="j", command=("x",), submitted_at=100.0)
    status = JobStatus(phase=phase, reason="", since=since, started_at=110.0)
    return Job(At(spec, 0), status=At(status, 0), progress=now)


def test_all_of_a_jobs_time_is_told() -> None:
    told = progress(10, 150.0, spent(train=20.0, data=4.0), restore=1.0)
    running = goodput(job(now=told), 150.5)
    assert running == {"pending": 10.0, "start": 15.0, "train": 20.5, "data": 4.0, "restore": 1.0}
    assert sum(running.values()) == pytest.approx(50.5)
    assert train_part(running) == pytest.approx(20.5 / 50.5)
    held = goodput(job(Phase.HOLDING, 151.0, told), 250.0)
    assert held["down"] == 100.0
    ended = goodput(job(Phase.SUCCEEDED, 152.0, told), 9999.0)
    assert sum(ended.values()) == pytest.approx(52.0)
    assert ended["between"] == 2.0


def test_a_job_that_waits_or_starts_says_so() -> None:
    waiting = replace(job(), status=None)
    assert goodput(waiting, 130.0) == {"pending": 30.0, "start": 0.0}
    assert goodput(job(), 130.0) == {"pending": 10.0, "start": 20.0}
    assert train_part({}) is None
