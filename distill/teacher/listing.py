"""What a running teacher says of itself in its record, second by second."""

from collections import deque
from dataclasses import dataclass

import msgspec

from distill.oip import ModelMetadata
from distill.records import Normalisation, TeacherRecord, settled
from distill.teacher.stats import Stats, Totals, measured_rate

#: figures have so many significant digits: noise must not be written again every second
DIGITS = 2
#: rates are over this long
WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """What does not change while a teacher runs."""

    teacher: str
    url: str
    job: str | None
    worker: str | None
    started_at: float


class Listing:
    """Makes records from a teacher's counters; called about once a second, by one thread."""

    def __init__(
        self, place: Place, metadata: ModelMetadata, normalisation: Normalisation | None, replicas: int
    ) -> None:
        self._replicas = replicas
        self._seen: deque[Totals] = deque()
        self._rate: float | None = None
        parameters = metadata.parameters
        self._record = TeacherRecord(
            teacher=place.teacher,
            url=place.url,
            model=metadata.name,
            model_hash=parameters.get("model_hash"),
            inputs=metadata.inputs,
            outputs=metadata.outputs,
            normalisation=normalisation,
            classes=parameters.get("classes"),
            job=place.job,
            worker=place.worker,
            started_at=place.started_at,
        )

    def record(self, stats: Stats, queue: int, *, draining: bool) -> TeacherRecord:
        """The record for now; also brings `stats.rate` up to date."""
        now = stats.totals()
        self._seen.append(now)
        while len(self._seen) > 2 and now.at_s - self._seen[0].at_s > WINDOW_S:
            self._seen.popleft()
        before = self._seen[0]
        stats.rate = measured_rate(self._seen[-2] if len(self._seen) > 1 else before, now, self._replicas, stats.rate)
        self._rate = settled(rounded(stats.rate), self._rate)
        window_s = now.at_s - before.at_s
        answered_rate = (now.samples - before.samples) / window_s if window_s > 0 else 0.0
        return msgspec.structs.replace(
            self._record,
            rate=self._rate,
            answered_rate=rounded(answered_rate) or 0.0,
            latency_p50_s=rounded(stats.latency_s(0.5)),
            latency_p99_s=rounded(stats.latency_s(0.99)),
            queue=queue,
            draining=draining,
        )


def rounded(value: float | None) -> float | None:
    """To DIGITS significant digits."""
    return None if value is None else float(f"{value:.{DIGITS}g}")
