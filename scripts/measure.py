"""scripts/measure.sh: what faults cost a job of this machine, how fast plans are written, what idle processes take.

Each measurement starts a cluster of its own (ZooKeeper, JobServer, JobClients) in a temporary directory and leaves
nothing behind. Figures of a busy machine mean little: the load average is printed with them. Tests use none of this.
"""

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from cluster import Cluster
from faults import Victim

JOB = "tiny"
SAMPLES = 1500
ENDLESS = ("--epochs", "100000", "--step_s", "0.02", "--samples", str(SAMPLES))
#: standard errors from the mean to the end of its 95 % interval, by number of pairs (Student's t)
T_95 = {5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}

Row = dict[str, Any]


def row(case: str, metric: str, unit: str, runs: list[float], **more: Any) -> Row:
    return {
        "case": case,
        "metric": metric,
        "unit": unit,
        "median": round(statistics.median(runs), 4),
        "runs": [round(run, 4) for run in runs],
        **more,
    }


@contextmanager
def started(*nodes: tuple[str, int]) -> Iterator[Cluster]:
    """A cluster with these (node, slots)."""
    with tempfile.TemporaryDirectory(prefix="edl-measure-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start(server_options=("--session-timeout", "4"))
            for node, slots in nodes:
                cluster.add_node(node, slots=slots)
            yield cluster
        finally:
            cluster.close()


# ---- failures ------------------------------------------------------------------------------------------------------


class Trials:
    """One job that faults are done to again and again; remembers the gap and the lost steps of each."""

    def __init__(self, victim: Victim) -> None:
        self.victim, self.cluster = victim, victim.cluster
        self.gaps: dict[str, list[float]] = {}
        self.lost: dict[str, list[float]] = {}
        self.taken_along: list[float] = []

    def do(self, case: str, fault: Callable[[], object], after: Callable[[], object]) -> None:
        """`after` waits until what the fault caused is over; only then the gap is looked for."""
        self.victim.wait_for_steps(10)
        lost, since_s = self.victim.lost_steps(), time.monotonic()
        fault()
        after()
        self.victim.wait_for_steps(5)
        self.gaps.setdefault(case, []).append(self.victim.longest_gap_s(since_s))
        self.lost.setdefault(case, []).append(len(self.victim.lost_steps() - lost))
        print(f"  {case}: {self.gaps[case][-1]:.3f} s", file=sys.stderr)

    def scale(self, np: int) -> Callable[[], object]:
        return lambda: self.cluster.post(f"/jobs/{JOB}/scale", {"np": np})

    def shrunk(self, expected: int) -> Callable[[], None]:
        """Wait for the next world; counts the survivors that a kill took with it, where `expected` should be left."""
        before = self.victim.last_event()

        def count() -> None:
            self.cluster.wait(lambda: self.victim.resizes(after=before), 60, "a smaller world", JOB)
            self.taken_along.append(expected - int(self.victim.resizes(after=before)[0]["to"]))

        return count

    def train(self, size: int) -> Callable[[], None]:
        return lambda: self.cluster.wait_for_world(JOB, size)

    def led_by(self, epoch: int) -> Callable[[], None]:
        def leads() -> bool:
            return bool(self.victim.driver()["epoch"] > epoch)

        return lambda: self.cluster.wait(leads, 30, "a new driver leads", JOB)

    def rows(self) -> list[Row]:
        kinds = (("pause_s", "s", self.gaps), ("steps_lost", "steps", self.lost))
        rows = [row(case, metric, unit, runs) for metric, unit, found in kinds for case, runs in found.items()]
        return [*rows, row("kills of one worker", "survivors_lost", "workers", self.taken_along)]


def failures(runs: int) -> list[Row]:
    """Longest time without a completed step of any worker around each fault, and steps that were done again."""
    with started(("a", 2), ("b", 2)) as cluster:
        cluster.submit(JOB, *ENDLESS, min_np=1, max_np=4, np=1, max_failures=10000)
        trials = Trials(Victim(cluster, JOB, SAMPLES))
        trials.train(1)()
        for _ in range(runs):
            _one_round(trials)
        report = trials.victim.audit()
        if not report.ok:
            raise SystemExit(f"samples were lost or doubled:\n{report}")
        return trials.rows()


def _one_round(trials: Trials) -> None:
    """From one worker up to four, through every kill, and back to one."""
    victim, cluster = trials.victim, trials.cluster
    trials.do("none", lambda: None, lambda: victim.wait_for_steps(40))
    trials.do("join-1-2", trials.scale(2), trials.train(2))
    trials.scale(3)()
    trials.train(3)()
    trials.do("join-3-4", trials.scale(4), trials.train(4))
    for case, rank in (("kill-4-3", 3), ("kill-rank-0", 0)):
        # The pause of the loss, then of the replacement that joins: told apart by the event of the first.
        trials.do(case, functools.partial(victim.kill_ranks, rank), trials.shrunk(3))
        trials.train(4)()
    epoch = victim.driver()["epoch"]
    trials.do("driver-kill", victim.kill_driver, trials.led_by(epoch))
    trials.do("leader-kill", lambda: cluster.kill("server"), lambda: victim.wait_for_steps(40))
    cluster.start_server("--session-timeout", "4")
    cluster.wait(lambda: cluster.get("/health")["epoch"], 30, "the restarted JobServer leads", JOB)
    trials.do("leave-4-3", trials.scale(3), trials.train(3))
    node = next(n for n in ("a", "b") if n != victim.node_of_driver())
    trials.do("jobclient-kill", lambda: cluster.kill(node), trials.train(2))
    cluster.add_node(node, slots=2)
    trials.train(3)()
    trials.scale(1)()
    trials.train(1)()


# ---- control -------------------------------------------------------------------------------------------------------


def control(runs: int) -> list[Row]:
    """From the request to scale to the decision that answers it, by the time in its event; then the plan is written."""
    with started() as cluster:
        cluster.add_node("a", slots=8)
        cluster.submit(JOB, *ENDLESS, min_np=1, max_np=2, np=1)
        cluster.wait_for_world(JOB, 1)
        took: list[float] = []
        for number in range(max(runs, 30)):
            np = 2 - number % 2
            before, asked_at = Victim(cluster, JOB, SAMPLES).last_event(), time.time()
            cluster.post(f"/jobs/{JOB}/scale", {"np": np})
            plans: list[Row] = []
            while not plans:
                plans = [event for event in cluster.events(JOB, "plan") if event["number"] > before]
            took.append(plans[0]["at"] - asked_at)
        return [row("scale", "plan_decided_ms", "ms", [1000 * seconds for seconds in took], target=50)]


# ---- footprint -----------------------------------------------------------------------------------------------------


def footprint(idle_s: float) -> list[Row]:
    """Memory of each process while a job runs, and the CPU of the idle control plane before it."""
    with started(("a", 2), ("b", 2), ("c", 2)) as cluster:
        time.sleep(3.0)  # what the start itself costs is no idling
        own = [psutil.Process(process.pid) for process in cluster.processes.values()]
        idle = [_cpu_s(process) for process in own]
        time.sleep(idle_s)
        share = 100 * (sum(_cpu_s(process) for process in own) - sum(idle)) / idle_s
        cluster.submit(JOB, *ENDLESS, min_np=1, max_np=2, np=2)
        cluster.wait_for_world(JOB, 2)
        driver = cluster.job(JOB)["driver"]["pid"]
        pids = {name: process.pid for name, process in cluster.processes.items()}
        return [
            row("idle: JobServer and 3 JobClients", "cpu", "% of a core", [share], target=2),
            row("JobServer", "rss", "MB", [_rss_mb(pids.pop("server"))], target=120),
            row("JobClient", "rss", "MB", [_rss_mb(pid) for pid in pids.values()], target=80),
            row("driver", "rss", "MB", [_rss_mb(driver)]),
        ]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _rss_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6


# ---- accuracy ------------------------------------------------------------------------------------------------------


def accuracy(seeds: int) -> list[Row]:
    """The same seeds undisturbed at two workers, and resized and killed: held-out accuracy of the last epoch."""
    if seeds not in T_95:
        raise SystemExit(f"--runs is {seeds}: accuracy takes {min(T_95)} to {max(T_95)} pairs")
    calm, shaken = [], []
    with started(("a", 2), ("b", 1)) as cluster:
        for seed in range(1, seeds + 1):
            calm.append(_train(cluster, f"calm-{seed}", seed, disturbed=False))
            shaken.append(_train(cluster, f"shaken-{seed}", seed, disturbed=True))
    differences = [after - before for before, after in zip(calm, shaken, strict=True)]
    mean = statistics.mean(differences)
    half = T_95[seeds] * statistics.stdev(differences) / math.sqrt(seeds)
    return [
        row("undisturbed", "accuracy", "%", calm),
        row("resized and killed", "accuracy", "%", shaken),
        row("difference", "points", "%", differences, mean=round(mean, 3), interval_95=[mean - half, mean + half]),
    ]


def _train(cluster: Cluster, job: str, seed: int, *, disturbed: bool) -> float:
    epochs = 10
    pace = "0.1" if disturbed else "0"  # time to disturb it; the steps are the same
    options = ("--epochs", str(epochs), "--seed", str(seed), "--lr", "0.05", "--step_s", pace)
    cluster.submit(job, *options, record_dir=job, min_np=1, max_np=3, np=2)
    cluster.wait_for_world(job, 2)
    if disturbed:
        cluster.post(f"/jobs/{job}/scale", {"np": 3})
        cluster.wait_for_world(job, 3)
        victim = Victim(cluster, job, SAMPLES, records=job)
        victim.kill_ranks(1)
        cluster.wait(lambda: len(victim.resizes()) >= 3, 60, "the survivors go on", job)
        cluster.post(f"/jobs/{job}/scale", {"np": 1})
        cluster.wait(lambda: victim.resizes()[-1]["to"] == 1, 60, "one worker goes on", job)
    cluster.wait_for_phase(job, "succeeded", 300)
    last = cluster.events(job, "epoch")[-1]["fields"]
    assert last["epoch"] == epochs - 1
    print(f"  {job}: {100 * last['accuracy']:.2f} %", file=sys.stderr)
    return 100.0 * float(last["accuracy"])


# ---- step-cost -----------------------------------------------------------------------------------------------------


def step_cost(runs: int) -> list[Row]:
    """What a step costs more than in a plain Horovod loop, alone and on two ranks."""
    script = str(Path(__file__).resolve().parent / "step_cost.py")
    horovodrun = str(Path(sys.executable).parent / "horovodrun")
    alone = [sys.executable, script, str(runs)]
    rows = []
    for ranks, command in ((1, alone), (2, [horovodrun, "--gloo", "-np", "2", "--network-interfaces", "lo", *alone])):
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "HOROVOD_CACHE_CAPACITY": "0"}
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
        added = json.loads(done.stdout.partition("added ")[2])
        rows.append(row(f"step, {ranks} ranks", "added_ms", "ms", added, target=0.2))
    return rows


# ---- the command ---------------------------------------------------------------------------------------------------

_DESCRIPTION = """\
Measures, on this machine:
  failures   pause and lost steps when a worker, the driver, the JobServer or a JobClient is killed, and when workers
             join and leave; a pause is the longest time in which no worker completed a step (the case "none" is the
             longest step of the undisturbed job)
  control    from a request to scale to the plan that answers it
  footprint  memory of the processes, CPU of the idle ones
  accuracy   held-out accuracy undisturbed against resized and killed, the same seeds
  step-cost  what a step costs more than in a plain Horovod loop: checks, vote, progress, position in the data"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/measure.sh", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["failures", "control", "footprint", "accuracy", "step-cost"])
    parser.add_argument("--runs", type=int, default=5, help="runs of each case, or paired seeds (default %(default)s)")
    parser.add_argument("--idle", type=float, default=30.0, metavar="SECONDS", help="footprint: how long to watch")
    parser.add_argument("--json", type=Path, metavar="FILE", help='write {"load", "rows"} there')
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}: it must be at least 1")
    before = os.getloadavg()
    print(f"load average before: {before[0]:.2f} on {os.cpu_count()} cores", file=sys.stderr)
    measurements: dict[str, Callable[[], list[Row]]] = {
        "failures": lambda: failures(options.runs),
        "control": lambda: control(options.runs),
        "footprint": lambda: footprint(options.idle),
        "accuracy": lambda: accuracy(options.runs),
        "step-cost": lambda: step_cost(options.runs),
    }
    rows = measurements[options.what]()
    for found in rows:
        extra = "".join(f", {name} {found[name]}" for name in ("target", "mean", "interval_95") if name in found)
        runs = " ".join(f"{run:g}" for run in found["runs"][:12])
        print(f"{found['case']:34} {found['metric']:16} median {found['median']:<9g} {found['unit']}{extra}  ({runs})")
    if options.json is not None:
        options.json.write_text(json.dumps({"load": [*before, *os.getloadavg()], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
