"""No coordinator to lose: three ZooKeepers, two JobServers and the driver, each killed while a job trains.

One job lives through all of it. Every test ends with no step lost and each sample exactly once per epoch.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import psutil
import pytest
from cluster import Cluster
from faults import Victim

from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DriverRecord, Rendezvous, WorkerRecord, WorkerState, decode
from edl_collective.coord.zk_store import ZkStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

SAMPLES = 1000
SESSION_S = 60.0
#: nobody waits for the end of a session; on a quiet machine it takes 0.3 to 1 s
RESIZES_AGAIN_S = SESSION_S / 2
PATHS = Paths()


class Watched(Victim):
    """The job with a session of the test's own, in which moments of a resize can be caught."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, "tiny", SAMPLES)
        assert cluster.ensemble is not None
        self.ensemble = cluster.ensemble
        self.store = ZkStore(self.ensemble.hosts, session_timeout_s=10.0).start()

    def record(self) -> Rendezvous:
        found = self.store.get(PATHS.rendezvous("tiny"))
        assert found is not None
        return decode(found.data, Rendezvous)

    def live_driver(self) -> DriverRecord | None:
        """The address of a driver whose process lives."""
        found = self.store.get(PATHS.driver("tiny"))
        record = None if found is None else decode(found.data, DriverRecord)
        return record if record is not None and psutil.pid_exists(record.pid) else None

    def states(self) -> dict[str, WorkerState]:
        names = self.store.children(PATHS.workers("tiny"))
        found = {name: self.store.get(PATHS.worker("tiny", name)) for name in names}
        return {name: decode(value.data, WorkerRecord).state for name, value in found.items() if value is not None}

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        """As Cluster.wait, but looking again at once: a phase is to be caught as soon as it begins."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                self.cluster.wait(lambda: False, 0, what, "tiny")
            time.sleep(0.002)  # a loop that never rests would keep those from their work that are waited for

    def kill_the_driver(self) -> float:
        """SIGKILL to the driver, once there is one; returns when."""
        self.until(self.live_driver, "a driver leads")
        driver = self.live_driver()
        assert driver is not None
        os.kill(driver.pid, signal.SIGKILL)
        return time.monotonic()

    def scale(self, np: int) -> None:
        self.cluster.post("/jobs/tiny/scale", {"np": np})


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    cluster = Cluster(tmp_path_factory.mktemp("coordinators"), ensemble=True, session_timeout_s=SESSION_S)
    try:
        cluster.start()
        cluster.start_server(name="standby")
        cluster.ask("server")
        for node, slots in (("a", 2), ("b", 1)):
            cluster.add_node(node, slots=slots)
        cluster.submit(
            "tiny", "--epochs", "10000", "--step_s", "0.06", "--samples", str(SAMPLES),
            min_np=1, max_np=3, np=2, max_failures=100,
        )  # fmt: skip
        cluster.wait_for_world("tiny", 2)
        victim = Watched(cluster)
        with closing(victim.store):
            yield victim
            victim.assert_nothing_lost(to_the_end=True)
    finally:
        cluster.close()


@pytest.fixture(autouse=True)
def nothing_lost(victim: Watched) -> Iterator[None]:
    yield
    victim.assert_nothing_lost()


def test_the_driver_killed_in_every_phase_of_a_resize(victim: Watched) -> None:
    before = victim.record()
    since_s = victim.kill_the_driver()  # idle
    victim.until(lambda: victim.record().epoch > before.epoch, "a successor leads")
    victim.wait_for_steps(3)
    victim.assert_went_on(since_s, before.generation)  # the running workers are adopted

    known = set(victim.states())
    victim.scale(3)

    def new_worker_is(state: WorkerState) -> bool:
        return any(found is state for name, found in victim.states().items() if name not in known)

    for phase in (WorkerState.STARTING, WorkerState.STANDBY):  # while a worker starts; while it waits at the gate
        victim.until(partial(new_worker_is, phase), f"the new worker is {phase}")
        victim.kill_the_driver()
    victim.until(lambda: victim.record().generation > before.generation, "the record of the next world is written")
    killed_s = victim.kill_the_driver()  # after the first reply, with some keys put
    victim.cluster.wait_for_world("tiny", 3)
    print(f"driver killed half-way through a rendezvous: whole {time.monotonic() - killed_s:.2f} s later")
    assert time.monotonic() - killed_s < RESIZES_AGAIN_S


@pytest.mark.parametrize("size", [2, 1])
def test_the_driver_killed_at_a_random_moment_of_a_shrink(victim: Watched, size: int) -> None:
    """Workers come to the barrier, a record is written, keys are passed on: all of it within some 200 ms."""
    victim.scale(size)
    time.sleep(random.Random(size).uniform(0.0, 0.25))
    killed_s = victim.kill_the_driver()
    victim.cluster.wait_for_world("tiny", size)
    print(f"driver killed in a shrink: whole {time.monotonic() - killed_s:.2f} s later")
    assert time.monotonic() - killed_s < RESIZES_AGAIN_S


@pytest.mark.parametrize(("leads", "size"), [(True, 2), (False, 1)], ids=["leader", "follower"])
def test_one_of_three_zookeeper_servers_killed(victim: Watched, leads: bool, size: int) -> None:
    before, since_s = victim.record().generation, time.monotonic()
    number = victim.ensemble.leader()
    number = number if leads else (number + 1) % 3
    victim.ensemble.kill(number)
    try:
        victim.wait_for_steps(20)
        victim.assert_went_on(since_s, before)
        victim.scale(size)
        victim.cluster.wait_for_world("tiny", size)
        assert victim.record().generation == before + 1, "nobody was lost"
    finally:
        victim.ensemble.restart(number)


def test_an_old_driver_that_wakes_up_is_refused(victim: Watched) -> None:
    """Another one has taken its seat while it stood still; what it says and writes then changes nothing."""
    old = victim.live_driver()
    assert old is not None
    before, since_s = victim.record(), time.monotonic()
    os.kill(old.pid, signal.SIGSTOP)
    try:
        successor = victim.cluster.start_driver("tiny", node="b")
        victim.until(lambda: victim.record().epoch > old.epoch, "the successor leads")
        victim.wait_for_steps(5)
    finally:
        os.kill(old.pid, signal.SIGCONT)
    victim.until(lambda: not psutil.pid_exists(old.pid), "the old one sees that it was replaced, and ends")
    log = (victim.cluster.base / "logs" / "tiny" / "driver.log").read_text()
    assert f"has taken the seat of epoch {old.epoch}" in log
    # Its JobClient was told to run one, so the next one takes the seat back; the one started by hand ends likewise.
    assert successor.wait(60) == 3
    victim.wait_for_steps(5)
    victim.assert_no_pause(since_s)
    assert victim.record().generation == before.generation, "no collective was touched by any of it"
    assert victim.record().epoch == before.epoch + 2


def test_the_leading_jobserver_killed(victim: Watched) -> None:
    cluster, before = victim.cluster, victim.record().generation
    leading = cluster.get("/health")["leader"]
    since_s = time.monotonic()
    cluster.kill(leading)
    cluster.ask("standby" if leading == "server" else "server")
    revision = cluster.job("tiny")["plan"]["revision"]
    victim.scale(2)
    victim.until(lambda: cluster.job("tiny")["plan"]["revision"] > revision, "the standby plans")
    print(f"leading JobServer killed: planned again {time.monotonic() - since_s:.2f} s later")
    assert time.monotonic() - since_s < RESIZES_AGAIN_S
    victim.wait_for_steps(5)
    victim.assert_no_pause(since_s)
    cluster.wait_for_world("tiny", 2)
    assert victim.record().generation == before + 1
