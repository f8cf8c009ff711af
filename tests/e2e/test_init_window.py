"""Deaths that a signal from outside does not bring about: inside Horovod's init(), and by the worker itself.

When all members of a generation are in init(), where nobody can be interrupted, they die together and no process holds
the training any more; it goes on from the state that the nodes hold in memory, without a step lost or a checkpoint.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ROOT, Cluster
from faults import Victim

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

JOB = "window"
SAMPLES = 1000
MEMORY = Path("/dev/shm")
#: new processes, two cores, other tests' load
RESTART_S = 60.0


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    cluster = Cluster(tmp_path_factory.mktemp("init-window"))
    try:
        cluster.start()
        for node in ("a", "b"):
            cluster.add_node(node, slots=2)
        cluster.submit(
            JOB, "--epochs", "10000", "--step_s", "0.06", "--samples", str(SAMPLES),
            program=ROOT / "tests" / "jobs" / "faulty.py",
            min_np=1, max_np=4, np=4, max_failures=100, checkpoint_url=f"file://{cluster.base}/checkpoints",
        )  # fmt: skip
        cluster.wait_for_world(JOB, 4)
        yield Victim(cluster, JOB, SAMPLES)
    finally:
        cluster.close()
    ours = list(MEMORY.glob("edl-*/*/window-*"))
    assert not ours, "left in memory"


def test_all_members_die_in_init(victim: Victim) -> None:
    cluster, event = victim.cluster, victim.last_event()
    before = {w["worker"] for w in cluster.running(JOB)}
    order(victim, "die-in-init", "1")
    assert victim.kill_ranks(1)
    cluster.wait(lambda: victim.resizes(after=event), RESTART_S, "it trains again", JOB)
    cluster.wait_for_world(JOB, 4)
    assert not before & {w["worker"] for w in cluster.running(JOB)}, "all of them died"
    (told,) = [e["text"] for e in cluster.events(JOB, "resume") if e["number"] > event]
    assert "from the state that a node held in memory" in told
    victim.assert_nothing_lost(to_the_end=True)


def test_workers_end_in_every_way_at_once(victim: Victim) -> None:
    victim.cluster.wait_for_world(JOB, 4)
    cluster, event = victim.cluster, victim.last_event()
    ways = {"raise": 1, "sys.exit": 3, "os._exit": 4}
    last, *victims = [w["worker"] for w in cluster.running(JOB)]
    soon = victim.steps()[-1].number + 20
    for worker, how in zip(victims, ways, strict=True):
        order(victim, f"end-{worker}", f"{how} {soon}")
    cluster.wait(lambda: victim.resizes(after=event), RESTART_S, "the last one goes on", JOB)
    ends = {w["worker"]: (w["exit_code"], w["outcome"]) for w in cluster.job(JOB)["worker_records"]}
    assert [ends[worker] for worker in victims] == [(code, "failed") for code in ways.values()]
    assert ends[last] == (None, None)
    victim.assert_nothing_lost(to_the_end=True)


def order(victim: Victim, name: str, text: str) -> None:
    """Whole from the moment it has its name."""
    draft = victim.cluster.base / name
    draft.write_text(text)
    draft.rename(victim.cluster.base / "records" / name)
