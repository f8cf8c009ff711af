"""The job that faults are done to, and what they did to it: gaps between steps, steps lost, samples doubled.

Times are the machine's monotonic clock, which the job's workers write beside each completed step.
"""

import os
import signal
import time
from itertools import pairwise

from edl_collective.audit import AuditReport, Records, audit, derive_lineage, read_logs
from jobserver.drill.cluster import POLL_S, Cluster, ClusterError, Json, Unavailable
from jobserver.drill.steps import Step, read_steps

#: for an event to be written after the report that came with it
TOLD_S = 60.0


class Victim:
    """The job that things are done to. `samples`: of an epoch; `records`: what it was given as record_dir."""

    def __init__(self, cluster: Cluster, job: str, samples: int, records: str = "records") -> None:
        self.cluster, self.job, self.samples = cluster, job, samples
        self._records = cluster.base / records

    # ---- faults ---------------------------------------------------------------------------------------------------

    def kill_ranks(self, *ranks: int, signum: int = signal.SIGKILL) -> list[str]:
        """A signal to the workers of these ranks, all at once; returns their ids."""
        names = [row[0] for row in self._told("rendezvous")["members"] if row[2] in ranks]
        pids = {w["worker"]: w["pid"] for w in self.cluster.job(self.job)["worker_records"]}
        for name in names:
            os.kill(pids[name], signum)
        return names

    def kill_driver(self) -> int:
        """SIGKILL to the job's driver; returns its epoch. Unavailable when there is none."""
        driver = self.driver()
        os.kill(driver["pid"], signal.SIGKILL)
        return int(driver["epoch"])

    # ---- what there is --------------------------------------------------------------------------------------------

    def driver(self) -> Json:
        """The address of the job's driver. Unavailable when there is none, as just after the end of one."""
        return self._told("driver")

    def node_of_driver(self) -> str:
        node: str = self._told("plan")["driver_node"]
        return node

    def generation(self) -> int:
        """Of the newest world."""
        return int(self._told("rendezvous")["generation"])

    def last_event(self) -> int:
        """Number of the newest event, once the resize to the newest world has been told.

        It is told beside the first report of that world and may be written after it: whoever counted it among what
        came later would take it for the answer to a fault.
        """
        self.cluster.wait(
            lambda: self.generation() in {resize["generation"] for resize in self.resizes()},
            TOLD_S,
            "the resize to the newest world is told",
            self.job,
        )
        return max((event["number"] for event in self.cluster.get(f"/jobs/{self.job}/events")["events"]), default=-1)

    def resizes(self, after: int = -1) -> list[Json]:
        """Fields of the resizes since the event numbered `after`."""
        return [e["fields"] for e in self.cluster.events(self.job, "resize") if e["number"] > after]

    def steps(self) -> list[Step]:
        """All completed steps of all workers, in order of time."""
        return read_steps(self._records)

    def wait_for_steps(self, count: int, timeout_s: float = 60.0) -> None:
        """Until `count` more steps are completed; asks no server."""
        goal = self.steps()[-1].number + count
        deadline = time.monotonic() + timeout_s
        while self.steps()[-1].number < goal:
            if time.monotonic() > deadline:
                raise ClusterError(f"fewer than {count} steps in {timeout_s:g} s")
            time.sleep(POLL_S)  # the log of another process has no event to wait for

    def longest_gap_s(self, since_s: float, until_s: float | None = None, *, within_worlds: bool = False) -> float:
        """The longest time, touching [since_s, until_s], in which no worker completed a step.

        within_worlds: between two steps of the same world, so that a resize is no gap.
        """
        steps = self.steps()
        until_s = steps[-1].at_s if until_s is None else until_s
        return max(
            after.at_s - before.at_s
            for before, after in pairwise(steps)
            if after.at_s >= since_s
            and before.at_s <= until_s
            and (before.generation == after.generation or not within_worlds)
        )

    def first_step_after(self, generation: int) -> float:
        """When (monotonic seconds) the first step of a world after `generation` was completed.

        ClusterError when none was.
        """
        later = [step.at_s for step in self.steps() if step.generation > generation]
        if not later:
            raise ClusterError(f"no world after generation {generation} has completed a step")
        return min(later)

    def generations(self, since_s: float) -> set[int]:
        """The generations that completed a step since then."""
        return {step.generation for step in self.steps() if step.at_s >= since_s}

    # ---- what was lost --------------------------------------------------------------------------------------------

    def lost_steps(self) -> set[tuple[int, int]]:
        """(generation, step) that some worker completed and that had to be done again. AuditError for a gap."""
        records = self._settled()
        kept = {
            (segment.generation, step)
            for segment in derive_lineage(records)
            for step in range(segment.first_step, segment.last_step + 1)
        }
        return records.done - kept

    def audit(self) -> AuditReport:
        """Every sample of the epochs completed up to now."""
        records = self._settled()
        under_way = max(taken.epoch for taken in records.taken if (taken.generation, taken.step) in records.done)
        return audit(records, derive_lineage(records), self.samples, range(under_way))

    def wait_for_epoch(self) -> None:
        """Until the epoch that is under way now is completed, so that the audit covers what was done up to now."""
        epoch = int(self._told("progress")["epoch"])
        self.cluster.wait(lambda: self._told("progress")["epoch"] > epoch, 60.0, f"epoch {epoch} ends", self.job)

    def _told(self, what: str) -> Json:
        """A part of the job. Unavailable when there is none at the moment, so that who waits for it waits on."""
        found: Json | None = self.cluster.job(self.job)[what]
        if found is None:
            raise Unavailable(f"the job has no {what} now")
        return found

    def _settled(self) -> Records:
        """The records of a job that runs, without the steps that it completed while they were read."""
        done = read_logs(self._records.glob("*.jsonl")).done
        records = read_logs(self._records.glob("*.jsonl"))
        return Records(records.taken, done, records.torn)
