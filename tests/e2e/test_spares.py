"""Spares, standbys that fail, workers that hang, and a node that is drained: one job lives through all of it.

After each: nothing that was trained is lost or done twice, and the job is back at three workers and a warm spare.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from cluster import ROOT, Cluster, Json
from faults import Victim

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLES = 1000
GLOO_TIMEOUT_S = 4
#: a survivor that is slow to answer is not to be taken for a hung one
RETURN_TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    cluster = Cluster(tmp_path_factory.mktemp("spares"))
    try:
        cluster.start(server_options=("--session-timeout", "4"))
        cluster.add_node("a", slots=3)
        cluster.add_node("b", slots=2)
        env = {"COLD_FAULT": str(cluster.base / "fault"), "HOROVOD_GLOO_TIMEOUT_SECONDS": str(GLOO_TIMEOUT_S)}
        cluster.submit(
            "tiny", "--epochs", "10000", "--step_s", "0.06", "--samples", str(SAMPLES),
            program=ROOT / "tests" / "jobs" / "cold_start.py", env=env,
            min_np=2, max_np=4, np=3, spares=1, max_failures=100,
            return_timeout_s=RETURN_TIMEOUT_S,
        )  # fmt: skip
        victim = Victim(cluster, "tiny", SAMPLES)
        yield victim
        victim.assert_nothing_lost(to_the_end=True)
    finally:
        cluster.close()


@pytest.fixture(autouse=True)
def nothing_lost(victim: Victim) -> Iterator[None]:
    """Every test begins with three workers and a spare at the gate, and ends with no step lost."""
    victim.cluster.wait_for_world("tiny", 3)
    victim.cluster.wait(lambda: warm_spares(victim), 90, "a spare is warm", "tiny")
    yield
    victim.assert_nothing_lost()


def spares(victim: Victim) -> list[str]:
    return [row[0] for row in victim.cluster.job("tiny")["plan"]["spares"]]


def record(victim: Victim, worker: str) -> Json:
    found: list[Json] = [w for w in victim.cluster.job("tiny")["worker_records"] if w["worker"] == worker]
    return found[0] if found else {"state": "unknown", "pid": None}


def warm_spares(victim: Victim) -> list[str]:
    return [name for name in spares(victim) if record(victim, name)["state"] == "standby"]


def stopped_spare(victim: Victim) -> str | None:
    """A spare whose process has stopped itself."""
    for name in spares(victim):
        with contextlib.suppress(psutil.NoSuchProcess):
            pid = record(victim, name)["pid"]
            if pid is not None and psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                return name
    return None


def members(victim: Victim) -> list[str]:
    return [row[0] for row in victim.cluster.job("tiny")["rendezvous"]["members"]]


def generation(victim: Victim) -> int:
    return int(victim.cluster.job("tiny")["rendezvous"]["generation"])


def story(victim: Victim) -> str:
    return "\n".join(map(str, victim.resizes()))


def test_the_node_of_rank_0_is_drained(victim: Victim) -> None:
    cluster, event = victim.cluster, victim.last_event()
    node = cluster.job("tiny")["rendezvous"]["members"][0][1]
    assert victim.node_of_driver() == node
    assert {row[1] for row in cluster.job("tiny")["rendezvous"]["members"]} == {node}, "nobody else has the state"
    gone = [w["worker"] for w in cluster.running("tiny") if w["node"] == node]
    cluster.post(f"/nodes/{node}/drain", {"deadline_s": 100})
    cluster.wait(lambda: not [w for w in cluster.running("tiny") if w["node"] == node], 90, "the node is left", "tiny")
    cluster.wait(lambda: [record(victim, w)["state"] for w in gone] == ["exited"] * len(gone), 60, "", "tiny")
    assert {(record(victim, w)["outcome"], record(victim, w)["exit_code"]) for w in gone} == {("left", 0)}
    assert victim.node_of_driver() != node
    assert [n["draining"] for n in cluster.get("/nodes")["nodes"] if n["node"] == node] == [True]
    victim.wait_for_steps(10)
    cluster.post(f"/nodes/{node}/undrain")
    cluster.wait_for_world("tiny", 3)
    assert all("restart" not in resize["cause"] for resize in victim.resizes(after=event))
    assert (cluster.job("tiny")["status"]["attempt"], cluster.events("tiny", "resume")) == (1, [])


def test_a_spare_takes_over_while_no_jobserver_lives(victim: Victim) -> None:
    cluster, event, before = victim.cluster, victim.last_event(), generation(victim)
    (spare,) = warm_spares(victim)
    lost = members(victim)[1]
    pid = record(victim, lost)["pid"]
    cluster.kill("server")
    since_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    victim.wait_for_steps(20)  # no JobServer lives: nobody but the driver can have put the spare there
    after = {step.worker for step in victim.steps() if step.generation == before + 1}
    assert spare in after
    assert len(after) == 3
    assert victim.generations(since_s) <= {before, before + 1}
    cluster.start_server("--session-timeout", "4")
    cluster.wait_for_world("tiny", 3)
    cluster.wait(lambda: warm_spares(victim), 90, "there is a new spare", "tiny")
    assert generation(victim) == before + 1
    (resize,) = victim.resizes(after=event)
    assert (resize["from"], resize["to"]) == (3, 3)
    assert resize["cause"] == f"worker {lost} killed by SIGKILL, {spare} stood by"
    assert spare in members(victim)


def test_a_standby_that_dies_or_hangs_costs_nothing(victim: Victim) -> None:
    cluster, event, fault = victim.cluster, victim.last_event(), victim.cluster.base / "fault"
    (spare,) = warm_spares(victim)
    deaths = cluster.job("tiny")["status"]["standby_deaths"]
    fault.write_text("die hang")  # the next one, and the one after it
    cluster.post("/jobs/tiny/scale", {"np": 4})
    cluster.wait_for_world("tiny", 4)
    assert spare in members(victim), "growth takes the warm spare"
    cluster.wait(lambda: cluster.job("tiny")["status"]["standby_deaths"] > deaths, 60, "a standby died", "tiny")
    cluster.wait(lambda: stopped_spare(victim), 60, "the next standby hangs", "tiny")
    hung = stopped_spare(victim)
    assert hung is not None
    # One of the four is lost, and the hanging spare is planned in its place: the others do not wait for it.
    lost = members(victim)[-1]
    os.kill(record(victim, lost)["pid"], signal.SIGKILL)
    cluster.wait(lambda: hung in {row[0] for row in cluster.job("tiny")["plan"]["workers"]}, 60, "", "tiny")
    cluster.wait(lambda: len(victim.resizes(after=event)) > 1, 60, "the others form a world without it", "tiny")
    victim.wait_for_steps(20)
    assert record(victim, hung)["state"] == "starting"
    os.kill(record(victim, hung)["pid"], signal.SIGKILL)
    sizes = [(resize["from"], resize["to"]) for resize in victim.resizes(after=event)]
    assert sizes[:2] == [(3, 4), (4, 3)], story(victim)
    cluster.post("/jobs/tiny/scale", {"np": 3})


def test_a_hung_worker_does_not_hold_up_the_survivors_of_another(victim: Victim) -> None:
    cluster, event = victim.cluster, victim.last_event()
    (spare,) = warm_spares(victim)
    first, stopped, killed = members(victim)
    pids = {name: record(victim, name)["pid"] for name in (stopped, killed)}
    os.kill(pids[stopped], signal.SIGSTOP)
    os.kill(pids[killed], signal.SIGKILL)
    cluster.wait(lambda: victim.resizes(after=event), 60, "the job goes on without both", "tiny")
    resize = victim.resizes(after=event)[0]
    assert f"worker {stopped} was silent for return_timeout_s = {RETURN_TIMEOUT_S:g} after an abort" in resize["cause"]
    assert f"worker {killed} killed by SIGKILL" in resize["cause"]
    assert {first, spare} <= set(members(victim))
    cluster.wait_for_world("tiny", 3)


def test_a_hung_worker_alone_is_given_up_after_the_time_out_of_gloo(victim: Victim) -> None:
    cluster, event = victim.cluster, victim.last_event()
    (spare,) = warm_spares(victim)
    stopped = members(victim)[0]
    since_s = time.monotonic()
    os.kill(record(victim, stopped)["pid"], signal.SIGSTOP)
    cluster.wait(lambda: victim.resizes(after=event), 60, "the job goes on without it", "tiny")
    resize = victim.resizes(after=event)[0]
    assert resize["cause"].startswith(f"worker {stopped} was silent for return_timeout_s"), resize["cause"]
    assert (resize["from"], resize["to"], spare in members(victim)) == (3, 3, True)
    assert victim.longest_gap_s(since_s) > GLOO_TIMEOUT_S / 2, "before a collective fails nobody can know"
