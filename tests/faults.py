"""Faults by name against one job of a test cluster, and what they did to it: gaps between steps, steps lost.

Times are the machine's monotonic clock, which the job's workers write beside each completed step.
"""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cluster import Cluster, Json

from edl_collective.audit import AuditReport, Records, audit, derive_lineage, read_logs


class Step(NamedTuple):
    """One worker has completed a step."""

    at_s: float
    generation: int
    #: steps completed in the job's life, this one included
    number: int
    worker: str


class Victim:
    """The job that things are done to. `samples`: of an epoch; `records`: what it was given as record_dir."""

    def __init__(self, cluster: Cluster, job: str, samples: int, records: str = "records") -> None:
        self.cluster, self.job, self.samples = cluster, job, samples
        self._records = cluster.base / records
        self._pids: dict[str, int] = {}

    # ---- faults ---------------------------------------------------------------------------------------------------

    def kill_ranks(self, *ranks: int) -> list[str]:
        """SIGKILL to the workers of these ranks, all at once; returns their ids."""
        names = self.names_of(*ranks)
        self.kill(*names)
        return names

    def names_of(self, *ranks: int) -> list[str]:
        """The workers of these ranks; notes their processes for `kill`."""
        detail = self.cluster.job(self.job)
        self._pids = {w["worker"]: w["pid"] for w in detail["worker_records"]}
        return [row[0] for row in detail["rendezvous"]["members"] if row[2] in ranks]

    def kill(self, *names: str) -> None:
        """SIGKILL to workers that `names_of` named; asks no server."""
        for name in names:
            os.kill(self._pids[name], signal.SIGKILL)

    def kill_driver(self) -> int:
        """SIGKILL to the job's driver; returns its epoch."""
        driver = self.driver()
        os.kill(driver["pid"], signal.SIGKILL)
        return int(driver["epoch"])

    # ---- what there is --------------------------------------------------------------------------------------------

    def driver(self) -> Json:
        driver: Json = self.cluster.job(self.job)["driver"]
        return driver

    def node_of_driver(self) -> str:
        node: str = self.cluster.job(self.job)["plan"]["driver_node"]
        return node

    def last_event(self) -> int:
        """Number of the newest event."""
        return max((event["number"] for event in self.cluster.get(f"/jobs/{self.job}/events")["events"]), default=-1)

    def resizes(self, after: int = -1) -> list[Json]:
        """Fields of the resizes since the event numbered `after`."""
        return [e["fields"] for e in self.cluster.events(self.job, "resize") if e["number"] > after]

    def steps(self) -> list[Step]:
        """All completed steps of all workers, in order of time."""
        return sorted(step for path in self._records.glob("*.times") for step in _read(path))

    def wait_for_steps(self, count: int, timeout_s: float = 30.0) -> None:
        """Until `count` more steps are completed; asks no server."""
        goal = self.steps()[-1].number + count
        deadline = time.monotonic() + timeout_s
        while self.steps()[-1].number < goal:
            assert time.monotonic() < deadline, f"fewer than {count} steps in {timeout_s:g} s"
            time.sleep(0.05)  # the log of another process has no event to wait for

    def wait_for_time(self, seconds: float) -> None:
        """Until a step was completed that many seconds from now; asks no server."""
        goal_s = time.monotonic() + seconds
        while self.steps()[-1].at_s < goal_s:
            assert time.monotonic() < goal_s + 10, "no step is completed"
            time.sleep(0.1)  # the log of another process has no event to wait for

    def longest_gap_s(self, since_s: float, until_s: float | None = None) -> float:
        """The longest time, touching [since_s, until_s], in which no worker completed a step."""
        times = [step.at_s for step in self.steps()]
        until_s = times[-1] if until_s is None else until_s
        return max(after - before for before, after in pairwise(times) if after >= since_s and before <= until_s)

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

    def _settled(self) -> Records:
        """The records of a job that runs, without the steps that it completed while they were read."""
        done = read_logs(self._records.glob("*.jsonl")).done
        records = read_logs(self._records.glob("*.jsonl"))
        return Records(records.taken, done, records.torn)


def _read(path: Path) -> list[Step]:
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was torn by SIGKILL
    fields = [line.split() for line in lines]
    return [Step(float(at), int(generation), int(number), path.stem) for at, generation, number in fields]
