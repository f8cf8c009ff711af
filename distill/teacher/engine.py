"""The model at work: a queue, a thread for each replica, and what is known of the model once it has run.

Invariant: nothing is served before the model has answered a batch of zeros of every size that it will meet, the same
way twice, and each sample as if it were alone.
"""

import logging
import threading
from collections.abc import Sequence

import numpy as np
import torch

from distill import oip
from distill.errors import ModelError
from distill.teacher.batching import Job, Outputs, Queue
from distill.teacher.replica import Replica
from distill.teacher.signature import Serving
from distill.teacher.stats import BatchTimes, Stats
from distill.teacher_client import Array
from edl_collective.coord.clock import Clock

logger = logging.getLogger(__name__)

#: the rate at the start is measured for this long
MEASURE_S = 0.3
#: sizes that an input leaves open are this in the warm-up
OPEN_SIZE = 16
#: relative difference between a sample's answer alone and in a batch that rounding explains
TOLERANCE = {"fp32": 2e-2, "int8": 2e-1, "bf16": 2e-1, "fp16": 1e-1}


class Engine:
    """Runs jobs. `warm_up` first, then `start`; `put` from any thread."""

    def __init__(self, replicas: Sequence[Replica], serving: Serving, clock: Clock, *, delay_s: float) -> None:
        self.stats = Stats(clock)
        self.serving = serving
        self.outputs: tuple[oip.TensorSpec, ...] = ()
        self._clock = clock
        self._replicas = list(replicas)
        self._queue = Queue(clock, max_batch=serving.max_batch, delay_s=delay_s)
        #: by replica, since when its batch runs; None while it waits
        self._busy_since: list[float | None] = [None] * len(self._replicas)
        self._threads = [
            threading.Thread(target=self._work, args=(index,), name=f"replica-{index}", daemon=True)
            for index in range(len(self._replicas))
        ]

    @property
    def queue_length(self) -> int:
        return len(self._queue)

    @property
    def replica_count(self) -> int:
        return len(self._replicas)

    def stuck_s(self) -> float:
        """How long the slowest batch that runs now has been running."""
        now = self._clock.monotonic_s()
        return max((now - since for since in list(self._busy_since) if since is not None), default=0.0)

    def warm_up(self) -> None:
        """Run every replica, find the outputs, check the model and measure its rate. Raises ModelError."""
        rate = 0.0
        for replica in self._replicas:
            with torch.inference_mode():
                self._check(replica)
                rate += self._measure(replica)
        self.stats.rate = rate

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Answer what waits, then end; whether all threads did within `timeout_s`."""
        self._queue.close()
        deadline_s = self._clock.monotonic_s() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - self._clock.monotonic_s()))
        return not any(thread.is_alive() for thread in self._threads)

    def put(self, job: Job) -> None:
        self._queue.put(job)

    # ---- at work -------------------------------------------------------------------------------------------------

    def _work(self, index: int) -> None:
        while jobs := self._queue.take():
            live = [job for job in jobs if not job.cancelled]
            for job in jobs:
                if job.cancelled:
                    job.done(job, [])
            if live:
                self._busy_since[index] = self._clock.monotonic_s()
                self._run(self._replicas[index], live)
                self._busy_since[index] = None

    def _run(self, replica: Replica, jobs: Sequence[Job]) -> None:
        begin_s = self._clock.monotonic_s()
        answers: Sequence[Outputs | Exception]
        try:
            answers = replica.run(jobs)
        except Exception as error:  # a thread that ends would leave its clients waiting
            if len(jobs) > 1:  # one request must not fail the others that it ran with
                for job in jobs:
                    self._run(replica, [job])
                return
            logger.warning("an inference failed: %s", error, exc_info=not isinstance(error, ModelError))
            self.stats.failed(1)
            answers = [error]
        else:
            rows = sum(job.rows for job in jobs)
            times = BatchTimes(len(jobs), rows, begin_s, self._clock.monotonic_s())
            self.stats.ran(times, [job.arrived_s for job in jobs])
        for job, answer in zip(jobs, answers, strict=True):
            job.began_s = begin_s
            job.done(job, answer)

    # ---- before it serves ----------------------------------------------------------------------------------------

    def _check(self, replica: Replica) -> None:
        most = self.serving.max_batch
        batch = [torch.from_numpy(array) for array in self._samples(max(most, 2))]
        outputs = replica.forward([x[:most] for x in batch])
        self._learn(replica, outputs)
        again = replica.forward([x[:most] for x in batch])
        replica.forward([x[: max(1, most - 1)] for x in batch])  # a compiled model is compiled again for open sizes
        alone = replica.forward([x[:1] for x in batch])
        for spec, first, second, single in zip(self.outputs, outputs, again, alone, strict=True):
            self._compare(f"output {spec.name!r} differs between two runs on the same batch", first, second, 1e-3)
            reason = f"output {spec.name!r} of a sample depends on the batch around it"
            self._compare(reason, first[:1], single, TOLERANCE[self.serving.precision])

    def _learn(self, replica: Replica, outputs: Sequence[torch.Tensor]) -> None:
        answer = oip.datatype_of({"fp16": "float16", "fp32": "float32"}[self.serving.answer])
        self.outputs = tuple(
            oip.TensorSpec(
                name,
                answer if x.is_floating_point() else oip.datatype_of(str(x.dtype).removeprefix("torch.")),
                (-1, *x.shape[1:]),
            )
            for name, x in zip(replica.names, outputs, strict=True)
        )

    def _compare(self, reason: str, a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
        if a.shape != b.shape:
            raise ModelError(f"{reason}: {list(a.shape)} and {list(b.shape)}")
        x, y = a.double(), b.double()
        if not torch.isfinite(x).all() or not torch.isfinite(y).all():
            raise ModelError(f"{reason.split(' ')[0]} {reason.split(' ')[1]} has values that are not finite")
        scale = max(float(x.abs().max()), float(y.abs().max()), 1e-6)
        if float((x - y).abs().max()) > tolerance * scale:
            raise ModelError(f"{reason}: is the model in training mode (dropout, batch norm)?")

    def _measure(self, replica: Replica) -> float:
        most = self.serving.max_batch
        batch = [torch.from_numpy(array) for array in self._samples(most)]
        begin_s, rows = self._clock.monotonic_s(), 0
        while True:
            for x in replica.forward(batch):
                x.cpu()
            rows += most
            took_s = self._clock.monotonic_s() - begin_s
            if took_s >= MEASURE_S:
                return rows / took_s

    def _samples(self, rows: int) -> list[Array]:
        """Random pixels; zeros for integers that may be indices; all samples differ where they can."""
        random = np.random.default_rng(0)
        arrays: list[Array] = []
        for spec in self.serving.inputs:
            dtype = np.dtype(oip.DATATYPES[spec.datatype][1])
            shape = (rows, *(OPEN_SIZE if size < 0 else size for size in spec.shape))
            if dtype == np.uint8:
                arrays.append(random.integers(0, 256, shape, np.uint8))
            elif dtype.kind == "f":
                arrays.append(random.standard_normal(shape).astype(dtype))
            else:
                arrays.append(np.zeros(shape, dtype))
        return arrays
