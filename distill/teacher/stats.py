"""What a teacher counts: for its statistics endpoint, for Prometheus, and for its record in ZooKeeper.

Written by the threads of the replicas and of the server, read by whoever asks; a lock of its own guards all of it.
"""

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edl_collective.coord.clock import Clock

#: latencies of this many answers make the percentiles
KEPT_LATENCIES = 2048


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """One batch that ran: monotonic times of its begin and end."""

    requests: int
    rows: int
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the start; differences of two of these give rates."""

    answered: int = 0
    failed: int = 0
    samples: int = 0
    batches: int = 0
    #: seconds that replicas were busy, together
    busy_s: float = 0.0
    #: seconds that requests waited in the queue, and from their arrival to their answer
    queued_s: float = 0.0
    latency_s: float = 0.0
    at_s: float = 0.0


class Stats:
    """Counters of one model."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._totals = Totals()
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._batch_rows: Counter[int] = Counter()
        self._statuses: Counter[int] = Counter()
        self._last_s = 0.0
        #: samples a second that all replicas together can answer
        self.rate: float | None = None
        self.received_bytes = 0
        self.sent_bytes = 0

    def ran(self, batch: BatchTimes, arrivals_s: Sequence[float]) -> None:
        """A batch was answered; `arrivals_s` of its requests, monotonic."""
        with self._lock:
            latencies_s = [batch.end_s - arrived_s for arrived_s in arrivals_s]
            before = self._totals
            self._totals = Totals(
                answered=before.answered + batch.requests,
                failed=before.failed,
                samples=before.samples + batch.rows,
                batches=before.batches + 1,
                busy_s=before.busy_s + batch.end_s - batch.begin_s,
                queued_s=before.queued_s + sum(latencies_s) - batch.requests * (batch.end_s - batch.begin_s),
                latency_s=before.latency_s + sum(latencies_s),
            )
            self._latencies.extend(latencies_s)
            self._batch_rows[batch.rows] += 1
            self._last_s = self.clock.wall_s()

    def failed(self, requests: int) -> None:
        """Requests that the model failed on."""
        with self._lock:
            self._totals = replace(self._totals, failed=self._totals.failed + requests)

    def sent(self, status: int, size_bytes: int) -> None:
        """An answer of any kind left."""
        self._statuses[status] += 1
        self.sent_bytes += size_bytes

    def totals(self) -> Totals:
        return replace(self._totals, at_s=self.clock.monotonic_s())

    def latency_s(self, quantile: float) -> float | None:
        """Of the newest answers; None before the first."""
        with self._lock:
            ordered = sorted(self._latencies)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] if ordered else None

    def batch_rows(self) -> dict[int, int]:
        """How many batches had how many samples."""
        with self._lock:
            return dict(sorted(self._batch_rows.items()))

    def statuses(self) -> dict[int, int]:
        return dict(sorted(self._statuses.items()))

    @property
    def last_answer_s(self) -> float:
        """Wall time, 0 before the first."""
        return self._last_s


def measured_rate(before: Totals, now: Totals, replicas: int, known: float | None) -> float | None:
    """Samples a second that the replicas can answer, from a time under load; `known` if it was not one. [pure]

    Only a time in which they were busy for half of it counts: few small batches say nothing about many full ones.
    """
    busy_s, whole_s = now.busy_s - before.busy_s, (now.at_s - before.at_s) * replicas
    if whole_s <= 0 or busy_s < whole_s / 2:
        return known
    measured = (now.samples - before.samples) / busy_s * replicas
    return measured if known is None else 0.7 * known + 0.3 * measured
