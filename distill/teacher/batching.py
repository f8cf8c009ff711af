"""The queue between connections and replicas: requests that may run together wait a moment for one another.

Any thread puts; each replica's thread takes. Order is first in, first out; a batch is a prefix of the queue, so nobody
is overtaken. A request with more samples than a batch may have runs alone (its replica splits it).
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distill.teacher.signature import Wanted
from distill.teacher_client import Array
from edl_collective.coord.clock import Clock


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way: `arrays` in the order of the model's inputs, each [rows, ...]."""

    arrays: tuple[Array, ...]
    rows: int
    wanted: tuple[Wanted, ...]
    #: monotonic
    arrived_s: float
    #: called once, from a replica's thread: what `wanted` asks for, in its order, or an error
    done: Callable[["Job", "Outputs | Exception"], None]
    #: the client is gone: nobody waits for the answer
    cancelled: bool = False
    #: monotonic, when its batch began to run; 0 before
    began_s: float = 0.0
    shapes: tuple[tuple[object, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shapes = tuple((array.dtype, *array.shape[1:]) for array in self.arrays)


#: for each wanted output its values, and the indices of a top-k
Outputs = Sequence[tuple[Array, Array | None]]


def batch_length(queue: Sequence[Job], max_batch: int) -> int:
    """How many from the front may run together: same dtypes and sample shapes, at most `max_batch` samples."""
    if not queue:
        return 0
    rows = 0
    for index, job in enumerate(queue):
        rows += job.rows
        if index and (rows > max_batch or job.shapes != queue[0].shapes):
            return index
    return len(queue)


class Queue:
    """Requests that wait.

    max_batch: samples of a batch. delay_s: how long the first of a batch waits for more, unless the batch is full.
    """

    def __init__(self, clock: Clock, *, max_batch: int, delay_s: float) -> None:
        self._clock = clock
        self._max_batch = max_batch
        self._delay_s = delay_s
        self._waiting: deque[Job] = deque()
        self._rows = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Job) -> None:
        with self._changed:
            self._waiting.append(job)
            self._rows += job.rows
            self._changed.notify()

    def take(self) -> list[Job]:
        """The next batch, as soon as there is one; empty when the queue is closed and empty."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._waiting:
                    left_s = self._waiting[0].arrived_s + self._delay_s - self._clock.monotonic_s()
                    if self._closed or self._rows >= self._max_batch or left_s <= 0:
                        return self._pop()
                    self._changed.wait(left_s)
                elif self._closed:
                    return []
                else:
                    self._changed.wait()

    def close(self) -> None:
        """What waits is still taken; then `take` returns nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _pop(self) -> list[Job]:
        batch = [self._waiting.popleft() for _ in range(batch_length(self._waiting, self._max_batch))]
        self._rows -= sum(job.rows for job in batch)
        if self._waiting:
            self._changed.notify()  # another replica may take the rest
        return batch

    def _drop_cancelled(self) -> None:
        while self._waiting and self._waiting[0].cancelled:
            job = self._waiting.popleft()
            self._rows -= job.rows
            job.done(job, [])
