"""A drill: a private cluster, a small job, one fault after another, and a row for each.

What it costs is measured from the job's own records; the verdict is jobserver.drill.verdict's. It leaves nothing
running, whatever happens in between.
"""

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edl_collective.audit import AuditReport
from edl_collective.errors import AuditError
from jobserver.drill.cluster import Cluster, ClusterError
from jobserver.drill.faults import ASKED_WORLDS, STANDBY, Fault, Scene
from jobserver.drill.network import Network, NetworkError, missing, private
from jobserver.drill.verdict import Book, Cost, Limits, Row, judge
from jobserver.drill.victim import Victim
from jobserver.local_zookeeper import LocalZooKeeperError

JOB = "drill"
SAMPLES = 700
START_TIMEOUT_S = 180.0
#: steps before and after a fault that show the job at its usual pace
STEADY_STEPS = 5

Say = Callable[[str], None]


class NoTraining(Exception):
    """Raised when this Python cannot train: PyTorch or Horovod is missing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a drill does. base: an existing directory that it may fill. slack: what all limits are multiplied by."""

    faults: Sequence[Fault]
    base: Path
    workers: int = 4
    seed: int = 1
    session_timeout_s: float = 2.0
    slack: float = 1.0

    def limits(self, fault: Fault) -> Limits:
        """What the fault may cost."""
        return fault.limits(self.session_timeout_s).times(self.slack)


def check_training() -> None:
    """Raises NoTraining, with what is missing."""
    tried = subprocess.run([sys.executable, "-c", "import horovod.torch"], capture_output=True, text=True, check=False)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise NoTraining(
            f"a drill trains with PyTorch and Horovod, which {sys.executable} cannot import ({reason}): "
            "scripts/setup.sh installs both"
        )


def run(plan: Plan, say: Say) -> Book:
    """Do the faults in their order. A job that does not come back, or whose records do not add up, ends the drill: the
    rest stays undone.

    Raises ClusterError, LocalZooKeeperError or NetworkError when the cluster does not even start.
    """
    book = Book()
    lacking = missing() if any(fault.needs_network for fault in plan.faults) else "not asked for"
    possible = [fault for fault in plan.faults if not (fault.needs_network and lacking)]
    with _network(wanted=not lacking) as network, _scene(plan, network, say) as scene:
        for fault in plan.faults:
            if fault not in possible:
                row = Row(fault.name, plan.limits(fault), why=str(lacking))
            elif lost := next((row for row in book.rows if row.passed is False and row.cost is None), None):
                row = Row(fault.name, plan.limits(fault), why=f"the drill ended at {lost.fault}")
            else:
                say(f"{fault.name}: {fault.what}")
                row = do(scene, fault, plan.limits(fault))
            book.rows.append(row)
            say(_told(row))
    return book


def do(scene: Scene, fault: Fault, limits: Limits) -> Row:
    """Do one fault; the row has no cost when the job did not come back or lost steps that nobody did again."""
    try:
        return judge(fault.name, _cost(scene, fault), limits)
    except (ClusterError, LocalZooKeeperError, NetworkError, AuditError, OSError) as error:
        why, _, story = str(error).partition("\n")
        (scene.cluster.base / f"{fault.name}.failed").write_text(f"{why}\n{story}\n")
        return Row(fault.name, limits, None, False, why)


def _cost(scene: Scene, fault: Fault) -> Cost:
    victim = scene.victim
    victim.wait_for_steps(STEADY_STEPS)
    lost, before, generation = victim.lost_steps(), victim.audit(), victim.generation()
    since_s = time.monotonic()
    resized_s = fault.do(scene)
    victim.wait_for_steps(STEADY_STEPS)
    pause_s = victim.longest_gap_s(since_s, within_worlds=resized_s is not None)
    victim.wait_for_epoch()
    doubled, absent = _wrong(victim.audit(), before)
    return Cost(
        pause_s=pause_s,
        lost_steps=len(victim.lost_steps() - lost),
        doubled_samples=doubled,
        missing_samples=absent,
        resize_s=None if resized_s is None else resized_s - since_s,
        unasked_worlds=0 if resized_s is None else victim.generation() - generation - ASKED_WORLDS,
    )


def _wrong(now: AuditReport, before: AuditReport) -> tuple[int, int]:
    """Samples used twice, and never, in the epochs that were completed since `before`."""
    new = [epoch for epoch in now.epochs if epoch.epoch not in {old.epoch for old in before.epochs}]
    return sum(len(e.doubled) for e in new), sum(len(e.missing) for e in new)


def _told(row: Row) -> str:
    if row.passed is None:
        return f"{row.fault}: not done, {row.why}"
    if row.cost is None:
        return f"{row.fault}: FAILED, {row.why}"
    verdict = "passed" if row.passed else f"FAILED, {row.why}"
    resized = "" if row.cost.resize_s is None else f", resized after {row.cost.resize_s:.2f} s"
    return f"{row.fault}: {verdict} (pause {row.cost.pause_s:.2f} s{resized})"


@contextlib.contextmanager
def _network(*, wanted: bool) -> Iterator[Network | None]:
    if not wanted:
        yield None
        return
    with private() as network:
        yield network


@contextlib.contextmanager
def _scene(plan: Plan, network: Network | None, say: Say) -> Iterator[Scene]:
    """A cluster of two nodes and two JobServers with a job of full size; stopped in order if nothing goes wrong."""
    cluster = Cluster(plan.base, session_timeout_s=plan.session_timeout_s, network=network)
    try:
        nodes, slots = ("a", "b"), (plan.workers + 1) // 2
        say(f"starting ZooKeeper, two JobServers and {len(nodes)} nodes of {slots} slots in {plan.base}")
        cluster.start()
        cluster.start_server(name=STANDBY)
        for node in nodes:
            cluster.start_node(node, slots=slots)
        for node in nodes:
            cluster.wait_for_node(node)
        command = [sys.executable, "-m", "jobserver.drill.job", "--record_dir", str(plan.base / "records")]
        command += ["--samples", str(SAMPLES), "--seed", str(plan.seed)]
        cluster.create(JOB, command, min_np=1, max_np=plan.workers, np=plan.workers, max_failures=1000)
        cluster.wait_for_world(JOB, plan.workers, START_TIMEOUT_S)
        say(f"{plan.workers} workers train")
        victim = Victim(cluster, JOB, SAMPLES)
        yield Scene(cluster, victim, plan.workers, slots, nodes, random.Random(plan.seed))
        say("stopping")
        cluster.close()
    finally:
        cluster.abandon()
