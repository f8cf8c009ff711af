"""What faults did to the job of a test cluster: the measurements of `edl drill`, judged so that no slow machine fails.

How short a pause is, scripts/measure.sh and `edl drill` judge on a quiet machine. A test asks whether there was one
that the machine does not explain, and what brought the world about.
"""

from itertools import pairwise

from cluster import Cluster

from jobserver.drill import victim
from jobserver.drill.steps import Step

__all__ = ["GLOO_ENV", "GLOO_TIMEOUT_S", "REFORMED_S", "Step", "Victim"]

#: of jobs in which no collective may wait for it: they fail at once where an abort reaches them
GLOO_TIMEOUT_S = 60
GLOO_ENV = {"HOROVOD_GLOO_TIMEOUT_SECONDS": str(GLOO_TIMEOUT_S)}
#: survivors train again before this; on a quiet machine they need half a second
REFORMED_S = GLOO_TIMEOUT_S / 2
#: a step may take this long anyhow, and so many times the longest undisturbed one of the same job
STEP_S, TIMES = 3.0, 5.0


class Victim(victim.Victim):
    """The job of a test cluster that faults are done to."""

    cluster: Cluster

    def assert_no_pause(self, since_s: float) -> None:
        """Since then no worker waited longer for a step than the machine explains, by the steps of before."""
        before = [step for step in self.steps() if step.at_s < since_s]
        usual_s = max(b.at_s - a.at_s for a, b in pairwise(before) if a.generation == b.generation)
        paused_s = self.longest_gap_s(since_s)
        limit_s = STEP_S + TIMES * usual_s
        assert paused_s < limit_s, f"paused {paused_s:.2f} s; the longest undisturbed step took {usual_s:.2f} s"

    def assert_went_on(self, since_s: float, generation: int) -> None:
        """The world of `generation` has trained without a pause since then: no collective failed."""
        assert self.generations(since_s) == {generation}
        self.assert_no_pause(since_s)

    def assert_nothing_lost(self, *, to_the_end: bool = False) -> None:
        """No step, and no sample of a completed epoch. `to_the_end`: first complete the epoch that is under way."""
        if to_the_end:
            self.wait_for_epoch()
        assert self.lost_steps() == set()
        report = self.audit()
        assert report.ok, str(report)
