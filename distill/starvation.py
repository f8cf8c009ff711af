"""How much a student waits for teachers, second by second, and what it could consume if it did not. [pure]"""

from distill.source import StudentReport

REPORT_EVERY_S = 1.0
#: a student that waits for more than this part of its time does not show what it could consume
_UNKNOWN_DEMAND = 0.95


class Starvation:
    """Makes reports of the counters of Control; the caller passes the time in (monotonic)."""

    def __init__(self, now_s: float) -> None:
        self._at_s = now_s
        #: samples, batches and seconds waited at the report before
        self._before = (0.0, 0.0, 0.0)
        self._demand: float | None = None
        self._per_step_s = 0.0
        self.next_s = now_s + REPORT_EVERY_S

    def report(
        self, counters: tuple[float, float, float, float], now_s: float, waiting_for: str | None
    ) -> StudentReport:
        """The time since the report before; a wait that is under way counts as far as it has come."""
        samples, batches, waited_s, waiting_since_s = counters
        waiting_s = max(0.0, now_s - waiting_since_s) if waiting_since_s else 0.0
        samples_before, batches_before, waited_before_s = self._before
        new_s, passed_s = max(0.0, waited_s + waiting_s - waited_before_s), now_s - self._at_s
        rate, starved = max(0.0, samples - samples_before) / passed_s, min(1.0, new_s / passed_s)
        if rate and starved < _UNKNOWN_DEMAND:
            self._demand = rate / (1 - starved)
        if batches > batches_before:
            self._per_step_s = new_s / (batches - batches_before)
        elif waiting_s:
            self._per_step_s = waiting_s  # one step, and so far
        self._at_s, self.next_s = now_s, now_s + REPORT_EVERY_S
        self._before = samples, batches, waited_s + waiting_s
        per_step_s = round(self._per_step_s, 6)
        return StudentReport(rate, self._demand, starved, waited_s + waiting_s, waiting_for, per_step_s)
