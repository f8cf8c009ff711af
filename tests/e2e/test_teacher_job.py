"""Teachers as an elastic job: as many as a student needs, replaced when they die, drained when they leave."""

import os
import signal
import sys
import threading

import pytest
from cluster import ROOT, Cluster, Json

from distill.discovery import Discovery, connect
from distill.io_settings import DynamicTeachers
from distill.source import StudentReport

pytestmark = pytest.mark.e2e
PROGRAM = ROOT / "tests" / "jobs" / "tiny_teacher.py"
#: a teacher that was killed stays listed for the time of its session
WAIT_S = 60.0


def names(student: Discovery) -> set[str]:
    return {t.teacher for t in student.teachers()}


def records(cluster: Cluster, state: str) -> dict[str, Json]:
    return {w["worker"]: w for w in cluster.job("t")["worker_records"] if w["state"] == state}


def test_teachers_come_are_replaced_and_leave(cluster: Cluster) -> None:
    cluster.add_node("a", slots=3)
    drained = cluster.base / "drained"
    drained.mkdir()
    command = [sys.executable, str(PROGRAM), "--drained", str(drained)]
    cluster.create("t", command, kind="teacher", service="svc", min_np=1, max_np=3)
    wake = threading.Event()
    wanted = DynamicTeachers(cluster.environ["EDL_ZOOKEEPER"], "/edl", "svc", "student")
    student = connect(wanted, wake=wake.set, environ=cluster.environ)
    try:
        cluster.wait(lambda: names(student) == {"t-w1"}, WAIT_S, "the first teacher is found", "t")
        student.report(StudentReport(rate=90.0, demand=250.0, starved=0.6, starved_s=2.0))
        cluster.wait(lambda: names(student) == {"t-w1", "t-w2", "t-w3"}, WAIT_S, "the student has three teachers", "t")
        assert "1 student of svc can use 250 samples/s" in cluster.job("t")["plan"]["reason"]
        assert cluster.get("/services/svc")["student_records"][0]["starved"] == 0.6

        os.kill(records(cluster, "running")["w2"]["pid"], signal.SIGKILL)
        cluster.wait(lambda: names(student) == {"t-w1", "t-w3", "t-w4"}, WAIT_S, "w2 is replaced", "t")

        cluster.post("/jobs/t/scale", {"np": 1})
        cluster.wait(lambda: names(student) == {"t-w1"}, WAIT_S, "two teachers left", "t")
        cluster.wait(lambda: len(records(cluster, "exited")) == 3, WAIT_S, "their processes ended", "t")
        assert {path.name for path in drained.iterdir()} == {"t-w3", "t-w4"}
        outcomes = {name: w["outcome"] for name, w in records(cluster, "exited").items()}
        assert outcomes == {"w2": "failed", "w3": "left", "w4": "left"}

        cluster.post("/jobs/t/stop")
        cluster.wait_for_phase("t", "stopped", WAIT_S)
        assert (drained / "t-w1").exists()
        cluster.wait(lambda: "has no teachers" in student.why_none(), WAIT_S, "the student knows", "t")
    finally:
        student.close()
