"""Students follow the teachers of a service on a real ZooKeeper."""

import threading

import pytest
from agent_cluster import wait_for
from fleet_flow import teacher

from distill.discovery import Discovery, connect
from distill.io_settings import DynamicTeachers
from distill.source import StudentReport
from edl_collective.coord.key_file import KEY_FILE_VARIABLE
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.zk_store import ZkStore

pytestmark = pytest.mark.integration
ROOT = "/discovery-test"


def names(student: Discovery) -> set[str]:
    return {t.teacher for t in student.teachers()}


def test_two_students_part_the_teachers_and_lose_them_with_their_session(zookeeper: str) -> None:
    paths = Paths(ROOT)
    serving = ZkStore(zookeeper).start()
    woken = threading.Event()
    wanted = [DynamicTeachers(zookeeper, ROOT, "svc", name) for name in ("x", "y")]
    students = [connect(one, wake=woken.set, environ={KEY_FILE_VARIABLE: "none"}) for one in wanted]
    try:
        assert woken.wait(60)
        wait_for(lambda: all("has no teachers" in student.why_none() for student in students))
        for name in ("a", "b", "c", "d"):
            serving.create(paths.teacher("svc", name), encode(teacher(name)), ephemeral=True)
        wait_for(lambda: all(len(names(student)) == 2 for student in students))
        assert names(students[0]) | names(students[1]) == {"a", "b", "c", "d"}
        students[0].report(StudentReport(rate=5.0, demand=50.0, starved=0.9, starved_s=3.0))
        students.pop().close()  # its session ends, and its teachers are the other's
        wait_for(lambda: names(students[0]) == {"a", "b", "c", "d"})
        serving.close()
        wait_for(lambda: not names(students[0]))
        assert "has no teachers" in students[0].why_none()
    finally:
        serving.close()
        for student in students:
            student.close()
