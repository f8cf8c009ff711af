"""kill -9 of each kind of process while a job of four workers trains: one job lives through all of it.

After each fault: nothing that was trained is lost or done twice, the job is back at its size, and can be resized.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from cluster import Cluster
from faults import GLOO_ENV, REFORMED_S, Victim

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

SAMPLES = 1000
SESSION_S = 4.0
#: of the JobClients that the first tests kill: nobody may wait for the end of it
LONG_SESSION_S = 60.0
SERVER_OPTIONS = ("--session-timeout", f"{SESSION_S:g}", "--absence-timeout", f"{SESSION_S + 2.0:g}")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    cluster = Cluster(tmp_path_factory.mktemp("failures"))
    try:
        cluster.start(server_options=SERVER_OPTIONS, gated=True)
        for node in ("a", "b"):
            cluster.add_node(node, slots=2, options=("--session-timeout", f"{LONG_SESSION_S:g}"))
        cluster.submit(
            "tiny", "--epochs", "10000", "--step_s", "0.06", "--samples", str(SAMPLES),
            min_np=1, max_np=4, np=4, max_failures=100, env=GLOO_ENV,
        )  # fmt: skip
        cluster.wait_for_world("tiny", 4)
        victim = Victim(cluster, "tiny", SAMPLES)
        cluster.wait(
            lambda: victim.resizes()[-1:] and victim.resizes()[-1]["to"] == 4, 60, "its event is there", "tiny"
        )
        yield victim
        victim.assert_nothing_lost(to_the_end=True)
    finally:
        cluster.close()


@pytest.fixture(autouse=True)
def nothing_lost(victim: Victim) -> Iterator[None]:
    """Every test begins and ends with four workers, no step lost, and each sample exactly once per epoch."""
    yield
    victim.assert_nothing_lost()


def scale(victim: Victim, np: int) -> None:
    victim.cluster.post("/jobs/tiny/scale", {"np": np})
    victim.cluster.wait_for_world("tiny", np)


def story(victim: Victim) -> str:
    """What the resizes and the logs of the dead say, for the message of a failure."""
    records = victim.cluster.job("tiny")["worker_records"]
    ends = [f"{w['worker']}: {w['exit_code']} {w['log_tail']}" for w in records if w["state"] == "exited"]
    return "\n".join([*map(str, victim.resizes()), *ends])


def generation(victim: Victim) -> int:
    return int(victim.cluster.job("tiny")["rendezvous"]["generation"])


@pytest.mark.parametrize(
    "hosts_driver", [pytest.param(False, marks=pytest.mark.long), True], ids=["beside", "with-driver"]
)
def test_jobclient_killed(victim: Victim, hosts_driver: bool) -> None:
    cluster, event = victim.cluster, victim.last_event()
    host = victim.node_of_driver()
    node = host if hosts_driver else next(n for n in ("a", "b") if n != host)
    pids = [w["pid"] for w in cluster.running("tiny") if w["node"] == node]
    assert len(pids) == 2
    since_s = time.monotonic()
    cluster.kill(node, signal.SIGKILL)
    cluster.wait(lambda: not {p.pid for p in cluster.ours()} & set(pids), 60, "its workers died with it")
    cluster.wait(lambda: victim.resizes(after=event), 60, "the other node goes on", "tiny")
    smaller = victim.resizes(after=event)[0]
    assert (smaller["from"], smaller["to"]) == (4, 2)
    assert f"node {node} is gone" in smaller["cause"]
    assert victim.longest_gap_s(since_s) < LONG_SESSION_S / 2, "nobody waits for the end of its session"
    assert victim.node_of_driver() != node
    cluster.add_node(node, slots=2)  # with a short session, whose end the tests below wait for
    cluster.wait_for_world("tiny", 4)


def test_leader_killed(victim: Victim) -> None:
    cluster = victim.cluster
    before, epoch, event = generation(victim), cluster.get("/health")["epoch"], victim.last_event()
    since_s = time.monotonic()
    cluster.kill("server")
    victim.wait_for_steps(20)
    cluster.start_server(*SERVER_OPTIONS)
    cluster.wait(lambda: cluster.get("/health")["epoch"] == epoch + 1, 60, "the restarted JobServer leads", "tiny")
    victim.assert_went_on(since_s, before)
    assert victim.resizes(after=event) == []
    scale(victim, 3)


def test_driver_killed(victim: Victim) -> None:
    before, event = generation(victim), victim.last_event()
    since_s = time.monotonic()
    epoch = victim.kill_driver()
    victim.cluster.wait(lambda: victim.driver()["epoch"] > epoch, 60, "a new driver has taken over", "tiny")
    victim.wait_for_steps(5)
    victim.assert_went_on(since_s, before)
    assert victim.resizes(after=event) == []
    scale(victim, 4)
    assert [(r["from"], r["to"]) for r in victim.resizes(after=event)] == [(3, 4)]


@pytest.mark.parametrize(
    "ranks", [pytest.param((3,), marks=pytest.mark.long), (0,), (1, 2)], ids=["worker", "rank-0", "two-at-once"]
)
def test_workers_killed(victim: Victim, ranks: tuple[int, ...]) -> None:
    event = victim.last_event()
    since_s = time.monotonic()
    names = victim.kill_ranks(*ranks)
    assert names
    victim.cluster.wait(lambda: victim.resizes(after=event), 60, "the survivors go on", "tiny")
    smaller = victim.resizes(after=event)[0]
    assert (smaller["from"], smaller["to"]) == (4, 4 - len(ranks)), story(victim)
    assert all(f"worker {name} killed by SIGKILL" in smaller["cause"] for name in names)
    assert smaller["pause_s"] < REFORMED_S
    victim.cluster.wait_for_world("tiny", 4)
    assert victim.longest_gap_s(since_s) < REFORMED_S


@pytest.mark.long
def test_zookeeper_killed(victim: Victim) -> None:
    before, event = generation(victim), victim.last_event()
    since_s = time.monotonic()
    victim.cluster.zookeeper.kill()
    victim.wait_for_steps(40)
    victim.cluster.zookeeper.start()
    victim.wait_for_steps(5)
    victim.assert_went_on(since_s, before)
    assert victim.resizes(after=event) == []
    scale(victim, 3)
    scale(victim, 4)


def test_zookeeper_away_until_all_sessions_ended_and_a_worker_killed_meanwhile(victim: Victim) -> None:
    """All ephemerals are gone, and those who judge are back before the nodes: only the dead worker is lost."""
    cluster, before, event = victim.cluster, generation(victim), victim.last_event()
    detail = cluster.job("tiny")
    killed = next(row[0] for row in detail["rendezvous"]["members"] if row[2] == 3)
    pid = next(w["pid"] for w in detail["worker_records"] if w["worker"] == killed)
    since_s = time.monotonic()
    for gate in cluster.gates.values():
        gate.shut()
    try:
        while time.monotonic() < since_s + SESSION_S + 1.0:
            victim.wait_for_steps(5)
        victim.assert_went_on(since_s, before)
        os.kill(pid, signal.SIGKILL)
        for name in ("server", "a", "b"):
            cluster.gates[name].open()
            time.sleep(1.0)  # each comes back later than the one before
    finally:
        for gate in cluster.gates.values():
            gate.open()
    cluster.wait(lambda: victim.resizes(after=event), 60, "the others go on without the dead", "tiny")
    smaller = victim.resizes(after=event)[0]
    assert (smaller["from"], smaller["to"]) == (4, 3), story(victim)
    assert smaller["cause"] == f"worker {killed} killed by SIGKILL"
    cluster.wait_for_world("tiny", 4)
    assert generation(victim) == before + 2, "and nobody else was lost"


def test_a_node_that_loses_its_session_is_taken_out_at_a_step_boundary_and_comes_back(victim: Victim) -> None:
    """It is cut off from ZooKeeper alone: its workers train until they are told to leave, so no collective fails."""
    cluster, event = victim.cluster, victim.last_event()
    node = next(n for n in ("a", "b") if n != victim.node_of_driver())
    since_s = time.monotonic()
    cluster.gates[node].shut()
    try:
        cluster.wait(lambda: victim.resizes(after=event), 60, "the others go on without it", "tiny")
    finally:
        cluster.gates[node].open()
    smaller = victim.resizes(after=event)[0]
    assert (smaller["from"], smaller["to"]) == (4, 2), story(victim)
    assert smaller["cause"].startswith("plan: ")
    victim.assert_no_pause(since_s)
    cluster.wait_for_world("tiny", 4)
