"""What a training job knows and does between two steps, the same on every rank: model, optimizer, position in the data.

Invariants: the live state is the commit, since parameters change only after a completed reduction; progress moves only
with a completed step; after `synchronize` every rank holds the state of the rank that completed the most steps.
The training function uses epochs(), batches(), backward(), step() and report(); everything else is for run().
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

from checkpoints import TrainStatus
from edl_collective import collectives, local
from edl_collective.audit import StepLog
from edl_collective.batches import ElasticBatchSampler, StepInfo, iterate, unwrap
from edl_collective.epoch_saver import EpochSaver
from edl_collective.errors import ProgressError, StateLost, StepOrderError, WorldChanged
from edl_collective.held import Held, Progress
from edl_collective.loader_workers import Loader, LoaderWorkers
from edl_collective.reducer import Reducer
from edl_collective.reporter import Reporter
from edl_collective.scaling import Rates, Schedule
from edl_collective.warm_up import LossOf, Rehearsal
from edl_collective.worlds import Worlds

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: Called on each resize with (state, workers before, workers now); workers before is 0 at the start.
Adjust = Callable[["State", int, int], None]

#: A rank that has trained nothing in this process.
_FRESH = -1


class State:
    """The elastic state of one training job.

    Arguments:
        model, optimizer: as a plain PyTorch script makes them, on their device; the optimizer's parameters are the
            model's. run() wraps the optimizer, so step through `State.step`, not through `optimizer`.
        sampler: the ElasticBatchSampler that the DataLoader was given as batch_sampler.
        schedule: learning rate on samples; each param group's "lr_scale" (default 1) multiplies it. None keeps each
            group's own rate, times the factor of the batch policy.
        scaler: a GradScaler for fp16, or None.
        clip_norm: largest norm of all gradients together, or None.
        checkpoint_url: where each completed epoch is saved, beside the training, and where a new attempt resumes; None
            saves nothing. Rank 0 holds a copy of the state in memory for that.
        keep: how many checkpoints remain.
        user: JSON values of the script that travel with the state and into checkpoints.
        loader, warm_up: what a worker does before it is let in: start this DataLoader's processes, which read the
            dataset as it is then, and go forward and backward through a small batch; warm_up(batch) is its loss.
        step_log: where each step's samples are recorded for audit(); the loader then reads a RecordingDataset, whose
            items batches() yields as if it were none.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        sampler: ElasticBatchSampler,
        schedule: Schedule | None = None,
        scaler: "torch.amp.GradScaler | None" = None,
        clip_norm: float | None = None,
        checkpoint_url: str | None = None,
        keep: int = 3,
        user: dict[str, Any] | None = None,
        loader: Loader[Any] | None = None,
        warm_up: LossOf | None = None,
        step_log: StepLog | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.sampler = sampler
        self.user = dict(user or {})
        self._scaler = scaler
        self._clip_norm = clip_norm
        self._step_log = step_log
        self._rates = Rates(optimizer.param_groups, schedule)
        self._adjusts: list[Adjust] = []
        self._reducer: Reducer | None = None
        self._worlds: Worlds | None = None
        self._reporter = Reporter()
        self._saver = None if checkpoint_url is None else EpochSaver(checkpoint_url, keep, self._reporter)
        self._workers = LoaderWorkers()
        self._rehearsal = Rehearsal(model, sampler, self._workers, loader, warm_up, recorded=step_log is not None)
        self._trained = False
        self._world_size = 0
        self._open: StepInfo | None = None
        self._backward_done = False
        #: checkpoints of this run are newer than the one it began from, whatever their steps: see _complete_epoch
        self._order_floor = 0
        #: the node was told how large the state is that it may have to hold
        self._reserved = False
        #: some rank voted, in the last step, to stop at this boundary
        self._stop = False

    # ---- for the training function --------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Completed epochs, which is the number of the one under way."""
        return self.sampler.epoch

    @property
    def global_step(self) -> int:
        """Completed steps since the job began."""
        return self.sampler.step

    def on_resize(self, adjust: Adjust) -> Adjust:
        """Register a function that runs on every rank after each change of the world; usable as a decorator."""
        self._adjusts.append(adjust)
        return adjust

    def epochs(self, total: int) -> Iterator[int]:
        """The epochs left of `total`. An epoch is completed and saved when its body ends, and reported when that is
        durable, which the end of the last one waits for. Raises CheckpointError when the save before failed."""
        while self.epoch < total:
            epoch = self.epoch
            self._reporter.begin_epoch(total)
            yield epoch
            if self.sampler.position < self.sampler.dataset_size:
                raise ProgressError(
                    f"epoch {epoch} ended at sample {self.sampler.position} of {self.sampler.dataset_size}: let the "
                    "loop over state.batches() run to its end"
                )
            self._complete_epoch(epoch)
        if self._saver is not None:
            self._saver.finish()

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """This rank's batches of the rest of the epoch; call backward() and step() once for each.

        Steps in which this rank has no sample are taken here, unseen. Raises WorldChanged between two steps when the
        world is to change, for run() to catch.
        """
        reducer = self._in_world()
        self._reporter.begin_steps(loader)
        epoch = self.epoch
        for info, batch in iterate(loader, self.sampler, lambda loader: self._workers.iterate(loader, epoch)):
            self._reporter.batch_ready()
            self._rates.set(reducer.optimizer.param_groups, self.sampler)
            reducer.open_step(self._worlds is not None and self._worlds.interrupted())
            self._open, self._backward_done = info, batch is None
            if self._step_log is not None:
                indices, batch = unwrap(batch)
                place = (self.sampler.generation, epoch, info.index, self._reporter.rank, self._world_size)
                self._step_log.take(*place, indices)
            if batch is None:
                self.step()
            else:
                yield batch
            self._check_stepped()
            self._reporter.batch_wanted()
            if self._stop:
                raise WorldChanged

    def backward(self, loss: torch.Tensor, samples: int) -> None:
        """Backpropagate `loss`, the MEAN over this rank's `samples` samples of the batch (a scalar tensor).

        The gradients add up over all ranks to those of the mean over the global batch, however it is divided.
        """
        info = self._open
        if info is None or self._backward_done:
            raise StepOrderError("state.backward() belongs once between a batch of state.batches() and state.step()")
        if samples != info.local_count:
            raise ValueError(f"samples is {samples} but this batch has {info.local_count}: pass the batch's length")
        self._in_world().backward(loss * (samples / info.global_count))
        self._reporter.add_loss(loss.detach(), samples)
        self._backward_done = True

    def step(self) -> None:
        """Reduce the gradients over all ranks and update the parameters; on return the step is completed."""
        info = self._open
        if info is None or not self._backward_done:
            raise StepOrderError("state.step() belongs after state.backward(), once for each batch of state.batches()")
        self._stop = self._in_world().step()
        self.sampler.advance(info.global_count)
        self._open = None
        self._trained = True
        if self._step_log is not None:
            self._step_log.confirm()
        if not self._reserved:
            self._reserve()
        self._reporter.step_done(self.sampler, info.global_count)

    def report(self, **metrics: float) -> None:
        """Numbers for the epoch's line (accuracy=...); `loss` replaces the mean training loss."""
        self._reporter.add_metrics(metrics)

    def status(self) -> TrainStatus:
        """Where the training stands, as checkpoints record it."""
        return TrainStatus(
            epoch_no=self.epoch - 1,
            position=self.sampler.position,
            global_step=self.global_step,
            samples=self.sampler.samples_seen,
            total_batch_size=self.sampler.global_batch,
            world_size=self._world_size,
            user=self.user,
        )

    # ---- for run() --------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Do what can be done before the others wait for this worker."""
        self._rehearsal.run()

    def enter(self, worlds: Worlds) -> None:
        """Become equal on all ranks of a new world. Raises HorovodInternalError when a member dies meanwhile."""
        import horovod.torch as hvd

        self._worlds = worlds
        if self._reducer is None:
            self._reducer = Reducer(self.model, self.optimizer, self._scaler, self._clip_norm)
            self.optimizer = self._reducer.optimizer
        before = self._world_size
        self._reporter.join(worlds, hvd.rank(), hvd.size())
        generation = self._synchronize(worlds.generation, worlds.held)
        if worlds.held is not None:
            worlds.held.drop()
        self._reducer.enter_world(generation)
        self.sampler.set_world(hvd.rank(), hvd.size(), generation)
        self._world_size = hvd.size()
        self._reporter.enter(generation if worlds.generation is None else worlds.generation, self.global_step)
        local.reseed_at(self.global_step, hvd.rank())
        for adjust in self._adjusts:
            adjust(self, before, self._world_size)

    def leave_world(self) -> None:
        """Forget what was in flight; call after Horovod was shut down. The node holds the state from here on."""
        self._open = None
        if self._reducer is None:
            return
        self._reducer.forget_step()
        held = None if self._worlds is None else self._worlds.held
        if held is not None and self._whole():
            held.hold(Progress(self.global_step, self.epoch), self.state_dict)

    def keep(self) -> None:
        """Nobody goes on with this state: save it where it is, in the middle of an epoch, on the rank that saves."""
        if self._saver is not None and self._reporter.rank == 0 and self._whole():
            self._save(self._reporter.kept)
            self._saver.finish()

    def _reserve(self) -> None:
        self._reserved = True
        held = None if self._worlds is None else self._worlds.held
        if held is not None:
            held.reserve(self.state_dict())
        if self._saver is not None and self._reporter.rank == 0:
            self._saver.reserve(self.state_dict())

    def _synchronize(self, offered: int | None, held: Held | None) -> int:
        """Take the state that is furthest, of a rank or held by its node; returns the generation that all agree on.

        That is the one the world offers, if it is above all that the lineage has seen: generations rise over the life
        of a job, also when a new attempt, alone or in another cluster, would count from 1 again.
        """
        import horovod.torch as hvd

        rows, source = self._settle(held)
        mine = rows[hvd.rank()]
        if all(row[3] and row[:2] == rows[source][:2] for row in rows):
            # All that differs between ranks that completed the same step: running statistics, the script's values.
            collectives.broadcast_tensors(list(self.model.buffers()), source)
            self.user = collectives.broadcast_json(self.user, source)
        else:
            self._take_from(source, equal=bool(mine[3]) and mine[:2] == rows[source][:2])
        self._trained = True
        newest = max(self.sampler.ledger.newest_generation, *(row[2] for row in rows))
        return max(offered or 0, newest + 1)

    def _settle(self, held: Held | None) -> tuple[list[list[int]], int]:
        """What each rank offered (step, epoch, generation, live), and the rank that has the furthest now."""
        import horovod.torch as hvd

        while True:
            mine, live = self._offer(held)
            rows = collectives.gather_rows([*mine, self.sampler.generation, int(live)])
            furthest = max(row[0] for row in rows)
            # A member that dies at the end of an epoch may leave some ranks before and some behind it, at the same
            # step. The lowest rank decides then: if it is the one that saves, an epoch that it has not saved is not
            # passed over. Of held states, it is the one before the end: who saved is not known.
            best = [(not row[3], 0 if row[3] else row[1], rank) for rank, row in enumerate(rows) if row[0] == furthest]
            source = min(best)[2]
            if rows[source][3]:
                return rows, source
            if furthest == _FRESH:
                if hvd.rank() == source:
                    self._resume()
                return rows, source
            taken = hvd.rank() == source and held is not None and self._take_held(held)
            if collectives.broadcast_json(taken, source):
                return rows, source
            if hvd.rank() == source:
                held = None

    def _whole(self) -> bool:
        """Whether this process holds the state of a completed step."""
        return self._trained and not self._in_world().torn

    def _offer(self, held: Held | None) -> tuple[Progress, bool]:
        """How far this rank could bring the others, and whether that is its own state, not one that its node holds."""
        mine = Progress(self.global_step, self.epoch) if self._whole() else Progress(_FRESH, 0)
        there = None if held is None else held.newest()
        # At the same step its own: of which epoch that is, is not for what another rank left here to say.
        return (there, False) if there is not None and there.step > mine.step else (mine, self._whole())

    def _take_held(self, held: Held) -> bool:
        """On the rank that every other will copy: continue from what the node holds; False if it cannot be used."""
        try:
            parts = held.take()
            self._in_world().torn = True
            self.load_state_dict(parts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            # Torn stays set if the file turned out to be of another model when some of it was loaded.
            logger.exception("the state that this node holds in memory cannot be used, and is thrown away")
            held.drop()
            return False
        self._in_world().torn = False
        self._reporter.went_on(self.epoch, self.global_step)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that has to be equal on all ranks, by name; what a checkpoint holds."""
        training: dict[str, Any] = {
            "sampler": self.sampler.state_dict(),
            "user": self.user,
            "order_floor": self._order_floor,
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }
        optimizer = self._in_world().optimizer.state_dict()
        return {"model": self.model.state_dict(), "optimizer": optimizer, "training": training}

    def load_state_dict(self, parts: dict[str, Any]) -> None:
        """Take what state_dict() gave. Raises ValueError, KeyError or RuntimeError when it is of something else."""
        self.model.load_state_dict(parts["model"])
        self._in_world().optimizer.load_state_dict(parts["optimizer"])
        training = parts["training"]
        self.sampler.load_state_dict(training["sampler"])
        self.user = dict(training["user"])
        self._order_floor = int(training["order_floor"])
        if self._scaler is not None and training["scaler"] is not None:
            self._scaler.load_state_dict(training["scaler"])

    def _take_from(self, source: int, *, equal: bool) -> None:
        """Receive the whole state; a rank that was not `equal` and whose source dies meanwhile holds a mixture."""
        import horovod.torch as hvd

        reducer = self._in_world()
        reducer.torn = hvd.rank() != source and not equal
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        parts = collectives.broadcast_state(self.state_dict(), source, tensors)
        if hvd.rank() != source:
            self.load_state_dict(parts)
        reducer.torn = False

    def _resume(self) -> None:
        """On the rank that every other will copy: continue from the newest valid checkpoint, if there is one."""
        loaded = None if self._saver is None else self._saver.resume()
        if loaded is None:
            if self._in_world().torn:
                raise StateLost
            return
        self.load_state_dict(loaded.state)
        self._order_floor = loaded.info.driver_epoch
        self._reporter.resumed(loaded)

    def _complete_epoch(self, epoch: int) -> None:
        self._workers.forget()
        self._reporter.close_epoch()
        self.sampler.set_epoch(epoch + 1)
        local.reseed_at(self.global_step, self._reporter.rank)
        told = self._reporter.epoch_done(epoch, self.sampler)
        if self._saver is None or self._reporter.rank != 0:
            told()
        else:
            self._save(told)

    def _save(self, told: Callable[[], None]) -> None:
        # A rank 0 that was replaced and wakes up late saves below its successor. A driver's epoch orders the attempts
        # of one job, and another job that goes on from this folder counts its drivers from 1 again: hence the floor.
        assert self._saver is not None, "only a state with a checkpoint_url is saved"
        order = self._order_floor + (self._worlds.driver_epoch if self._worlds is not None else 0)
        self._reporter.begin_save()
        self._saver.save(self.status(), self.state_dict(), order, told)
        self._reporter.end_save()

    def _check_stepped(self) -> None:
        if self._open is not None:
            raise StepOrderError("state.step() was not called for a batch: call it once for each")

    def _in_world(self) -> Reducer:
        if self._reducer is not None:
            return self._reducer
        raise StepOrderError("use the state inside the function that edl_collective.run wraps")
