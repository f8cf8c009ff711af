"""What people see of a training: a progress report a few times a second, a line per epoch, a line per resize.

Only rank 0 speaks; every rank counts, since any may become rank 0. Never changes what is trained.
"""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from checkpoints import LoadedCheckpoint, TrainStatus
from edl_collective import collectives
from edl_collective.batches import ElasticBatchSampler
from edl_collective.goodput import Stopwatch
from edl_collective.messages import Happened, Report
from edl_collective.scalars import VARIABLE, Scalars
from edl_collective.teacher_waits import TeacherWaits, per_step
from edl_collective.worlds import Worlds

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.2
#: a job is near its end, and is not resized, when this part of its samples is left
NEAR_END_FRACTION = 0.1
#: fields of an epoch's event that are not the script's to report
RESERVED = frozenset({"epoch", "step", "workers", "samples_per_s", "kind", "text", "worker", "teacher_wait_s_per_step"})
#: characters of why a save failed that a job's status takes
MOST_TROUBLE = 400


class Reporter:
    """Counters of one process. Clock: monotonic for durations, wall time only for people."""

    def __init__(self) -> None:
        self.rank = 0
        self._worlds: Worlds | None = None
        self._generation = 0
        self._size = 0
        self._size_before = 0
        self._epochs_total: int | None = None
        self._metrics: dict[str, float] = {}
        self._loss_sum: torch.Tensor | float = 0.0
        self._loss_count = 0
        self._epoch_samples = 0
        self._epoch_seconds = 0.0
        self._mark: float | None = None
        self._last_step: float | None = None
        self._resize_pending = False
        self._reported = 0.0
        self._pause_s: float | None = None
        #: why the last save failed; empty once one has succeeded
        self._trouble = ""
        #: loss and accuracy of the last completed epoch, shown until there are newer ones
        self._shown: dict[str, float] = {}
        self._waits = TeacherWaits()
        #: of the last completed epoch, over all ranks
        self._epoch_wait_s: float | None = None
        self._watch = Stopwatch(time.monotonic())
        #: seconds that teachers have been waited for, as far as `_watch` knows
        self._waited_s = 0.0
        self._scalars = Scalars(os.environ.get(VARIABLE, ""))
        #: this process speaks for the job
        self._speaks = False

    def join(self, worlds: Worlds, rank: int, size: int) -> None:
        """A new world begins; from now on it is known who speaks."""
        self._worlds = worlds
        self._size_before = self._size
        self.rank, self._size = rank, size
        if self._last_step is None:
            self._watch.restart(time.monotonic())  # it stood by, for as long as it was not needed

    def enter(self, generation: int, step: int) -> None:
        """The state is equal on all ranks; the resize is told when its first step is done. `step`: completed ones."""
        self._generation = generation
        self._resize_pending = True
        self._epoch_samples, self._epoch_seconds = 0, 0.0  # a speed is that of one size
        if self.rank == 0 and not self._speaks:
            by = f"{os.environ.get('EDL_WORKER', os.getpid())}:{generation}"
            self._watch.speak(by, step, time.monotonic(), time.time(), fresh=self._last_step is None)
        self._speaks = self.rank == 0
        self._end_phase("sync")

    def resumed(self, loaded: LoadedCheckpoint) -> None:
        for skipped in loaded.skipped:
            self._tell("checkpoint", f"skipped checkpoint {skipped.name}: {skipped.reason}", outcome="skipped")
        epoch = loaded.status.next()
        self._tell("resume", f"resumed from a checkpoint at epoch {epoch}", epoch=epoch, step=loaded.status.global_step)

    def went_on(self, epoch: int, step: int) -> None:
        """Called on whichever rank took the state that its node held."""
        text = f"went on at step {step} from the state that a node held in memory"
        self._say(Happened(kind="resume", text=text, fields={"epoch": epoch, "step": step}))

    def begin_epoch(self, total: int) -> None:
        self._epochs_total = total
        self._metrics = {}
        self._waits.begin_epoch()

    def begin_steps(self, loader: object) -> None:
        self._waits.follow(loader)
        self._mark = time.monotonic()
        if not self._resize_pending:
            self._watch.spend("between", self._mark)

    def batch_wanted(self) -> None:
        """The script has done with a step and asks for the next batch."""
        if not self._resize_pending:
            self._watch.spend("train", time.monotonic())

    def batch_ready(self) -> None:
        """The loader gave the batch of the next step."""
        if self._resize_pending:
            self._end_phase("batch")
            return
        now, waited_s = time.monotonic(), self._waits.total_s()
        self._watch.spend("teacher", now, waited_s - self._waited_s)
        self._watch.spend("data", now)
        self._waited_s = waited_s

    def add_loss(self, loss: torch.Tensor, samples: int) -> None:
        # Kept on the loss's device: reading it here would wait for the device at every step.
        self._loss_sum = self._loss_sum + loss.to(torch.float32) * samples
        self._loss_count += samples

    def add_metrics(self, metrics: dict[str, float]) -> None:
        taken = sorted(RESERVED & metrics.keys())
        if taken:
            raise ValueError(f"state.report({taken[0]}=...) uses a name that EDL reports itself: choose another one")
        self._metrics.update({name: float(value) for name, value in metrics.items()})

    def step_done(self, sampler: ElasticBatchSampler, samples: int) -> None:
        now = time.monotonic()
        if self._mark is not None:
            self._epoch_seconds += now - self._mark
            self._epoch_samples += samples
        if self._resize_pending:
            self._tell_resize(now, sampler.step)
            self._waited_s = self._waits.total_s()
        else:
            self._watch.spend("train", now)
        self._mark = self._last_step = now
        if self.rank == 0 and now - self._reported >= REPORT_INTERVAL_S:
            self._reported = now
            self._send(self._report(sampler))

    def begin_save(self) -> None:
        """The training waits from here on, until `end_save`, for a save to begin."""
        self._watch.spend("between", time.monotonic())

    def end_save(self) -> None:
        self._watch.spend("checkpoint", time.monotonic())

    def close_epoch(self) -> None:
        """Average over all ranks; every rank calls it. Raises HorovodInternalError."""
        own = [float(self._loss_sum), float(self._loss_count), *self._waits.counts()]
        total, count, waited_s, steps = collectives.sum_across(own)
        if count:
            self._metrics.setdefault("loss", total / count)
        self._epoch_wait_s = per_step(waited_s, steps)

    def saved(self, status: TrainStatus, seconds: float, blocked_s: float) -> None:
        """Called in the saving thread of the rank that saves."""
        self._trouble = ""
        epoch = status.epoch_no
        what = f"step {status.global_step} of epoch {epoch + 1}" if status.position else f"epoch {epoch}"
        text = f"saved {what} in {seconds:.2f} s, of which training waited {blocked_s:.2f} s"
        times = {"seconds": round(seconds, 3), "blocked_s": round(blocked_s, 3)}
        self._say(Happened(kind="checkpoint", text=text, fields={"epoch": epoch, "outcome": "saved", **times}))

    def kept(self) -> None:
        """Called in the saving thread of the rank that saves."""
        text = "the state is kept until workers come again"
        self._say(Happened(kind="checkpoint", text=text, fields={"outcome": "kept"}))

    def not_saved(self, epoch: int, why: str) -> None:
        """Called in the saving thread of the rank that saves. It stays in the job's status until a save succeeds."""
        self._trouble = why[:MOST_TROUBLE]
        text = f"epoch {epoch} was not saved: {why}"
        self._say(Happened(kind="checkpoint", text=text, fields={"epoch": epoch, "outcome": "failed"}))

    def epoch_done(self, epoch: int, sampler: ElasticBatchSampler) -> Callable[[], None]:
        """Make the epoch's line, which the caller tells, in any thread; counters begin again."""
        speed = self._samples_per_s()
        metrics = {name: round(value, 6) for name, value in self._metrics.items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        tell = partial(
            self._tell,
            "epoch",
            f"epoch {epoch}: {self._size} workers, {speed or 0:.0f} samples/s, {shown}",
            epoch=epoch,
            step=sampler.step,
            workers=self._size,
            samples_per_s=speed,
            **metrics,
            **({} if self._epoch_wait_s is None else {"teacher_wait_s_per_step": self._epoch_wait_s}),
        )
        self._shown = metrics
        if self.rank == 0:
            self._send(self._report(sampler))
            curves = {f"epoch/{name}": value for name, value in metrics.items()}
            self._scalars.add(sampler.step, {**curves, "epoch/samples_per_s": speed, "epoch/number": epoch})
        self._loss_sum, self._loss_count = 0.0, 0
        self._epoch_samples, self._epoch_seconds = 0, 0.0
        return tell

    def _end_phase(self, phase: str) -> None:
        if self._worlds is not None:
            self._worlds.phases.end(phase)

    def _tell_resize(self, now: float, step: int) -> None:
        self._resize_pending = False
        self._end_phase("step")
        pause_s = None if self._last_step is None else round(now - self._last_step, 4)
        self._pause_s = pause_s if pause_s is not None else self._pause_s
        cause = self._worlds.cause if self._worlds is not None else ""
        spans = self._worlds.phases.spans(self._last_step) if self._worlds is not None else {}
        self._watch.spend_pause(spans, now)
        if self.rank == 0:
            self._scalars.add(step, {"resize/workers": self._size, "resize/pause_s": pause_s})
        parts = ", ".join(f"{phase} {span:.3f}" for phase, span in spans.items())
        pause = "" if pause_s is None else f", pause {pause_s:.2f} s" + (f" ({parts})" if parts else "")
        self._tell(
            "resize",
            f"{self._size_before} -> {self._size} workers: {cause}{pause}",
            **{"from": self._size_before, "to": self._size},
            cause=cause,
            pause_s=pause_s,
            generation=self._generation,
            **{f"{phase}_s": round(span, 4) for phase, span in spans.items()},
        )

    def _report(self, sampler: ElasticBatchSampler) -> Report:
        total = self._epochs_total
        shown = {**self._shown, **self._metrics}
        whole = None if total is None else total * sampler.dataset_size
        left = None if whole is None else max(0, whole - sampler.samples_seen)
        return Report(
            generation=self._generation,
            world_size=self._size,
            epoch=sampler.epoch,
            step=sampler.step,
            epochs_total=total,
            samples_per_s=self._samples_per_s(),
            loss=shown.get("loss"),
            accuracy=shown.get("accuracy"),
            teacher_wait_s_per_step=self._waits.per_step_s(),
            near_end=whole is not None and left is not None and left <= NEAR_END_FRACTION * whole,
            message=self._trouble,
            last_step_at=time.time(),
            samples_left=left,
            pause_s=self._pause_s,
            spent=self._watch.spent(),
        )

    def _samples_per_s(self) -> float | None:
        return round(self._epoch_samples / self._epoch_seconds, 2) if self._epoch_seconds > 0 else None

    def _tell(self, kind: str, text: str, **fields: Any) -> None:
        if self.rank == 0:
            self._say(Happened(kind=kind, text=text, fields=fields))

    def _say(self, event: Happened) -> None:
        if self._worlds is not None:
            self._worlds.happened(event)

    def _send(self, report: Report) -> None:
        if self._worlds is not None:
            self._worlds.report(report)
