"""Students that are resized while their teachers die and come: every sample once, with its own prediction."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from cluster import ROOT, Cluster
from distill_students import FaultTeacher, teachers

from distill.records import TeacherRecord
from edl_collective.audit import audit, derive_lineage, read_logs
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.zk_store import ZkStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROGRAM = ROOT / "tests" / "jobs" / "tiny_student.py"
#: of 2 s each, until it may hurry
SAMPLES, EPOCHS = 800, 12
WAIT_S = 60.0


@pytest.fixture
def store(cluster: Cluster) -> Iterator[ZkStore]:
    with closing(ZkStore(cluster.environ["EDL_ZOOKEEPER"]).start()) as found:
        yield found


def put(store: ZkStore, teacher: FaultTeacher, name: str) -> None:
    """List a teacher; it stays listed whatever becomes of its process."""
    record = TeacherRecord(teacher=name, url=f"http://{teacher.name}", model="m", model_hash="h1", rate=2000.0)
    path = Paths().teacher("svc", name)
    store.create(path, encode(record, path), ephemeral=True)


def test_a_student_that_grows_and_shrinks_loses_nothing_when_teachers_die(cluster: Cluster, store: ZkStore) -> None:
    cluster.add_node("a", slots=2)
    slow = ("--delay-ms", "4")
    with teachers(slow, slow) as running:
        for number, teacher in enumerate(running):
            put(store, teacher, f"t{number}")
        options = ["--service", "svc", "--epochs", str(EPOCHS), "--samples", str(SAMPLES), "--step_s", "0.04"]
        cluster.submit("student", *options, program=PROGRAM, min_np=1, max_np=2, np=1)
        cluster.wait_for_world("student", 1)
        running[0].kill()  # and stays listed: its connections tell
        cluster.post("/jobs/student/scale", {"np": 2})
        cluster.wait_for_world("student", 2)
        running[0] = running[0].again()
        running[0].await_live()
        cluster.wait(lambda: cluster.events("student", "epoch"), WAIT_S, "an epoch is completed", "student")
        running[1].kill()
        cluster.post("/jobs/student/scale", {"np": 1})
        cluster.wait_for_world("student", 1)
        (cluster.base / "records" / "hurry").touch()
        cluster.wait_for_phase("student", "succeeded", WAIT_S)
        cluster.wait(
            lambda: len(cluster.events("student", "epoch")) >= EPOCHS, WAIT_S, "all epochs are told", "student"
        )
        events = cluster.events("student", "epoch")
        assert [event["fields"]["epoch"] for event in events] == list(range(EPOCHS))
        # An epoch whose steps were all in the world before has none to tell of.
        waits = [event["fields"].get("teacher_wait_s_per_step") for event in events]
        assert all(wait is None or wait >= 0 for wait in waits)
        assert sum(wait is not None for wait in waits) >= EPOCHS - 2, waits
        assert cluster.job("student")["teacher_wait_s_per_step"] >= 0, "starvation is a number"
    records = read_logs((cluster.base / "records").glob("*.jsonl"))
    report = audit(records, derive_lineage(records), SAMPLES, range(EPOCHS))
    assert report.ok, str(report)
