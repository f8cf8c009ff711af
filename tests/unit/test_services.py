"""Services in the HTTP interface and on the command line."""

import json
from pathlib import Path

import pytest
from api_server import SUBMIT, P, Server, refused
from click.testing import CliRunner
from fleet_flow import student, teacher
from msgspec.structs import replace
from prometheus_text import parse
from test_cli import Cluster

from distill.balance import Share
from edl_collective.coord.records import Progress, encode
from jobserver.cli.main import edl


def fill(server: Server) -> None:
    slow = replace(teacher("a", 200.0), answered_rate=50.0, latency_p50_s=0.02, latency_p99_s=0.05, queue=3)
    waits = replace(student("x", 120.0, has=Share(("a",), ("b",))), rate=60.0, starved=0.5, starved_s=7.0, job="train")
    waits = replace(waits, wait_s_per_step=0.25)
    server.put(P.teacher("svc", "a"), slow)
    server.put(P.teacher("svc", "b"), teacher("b", 100.0, draining=True))
    server.put(P.student("svc", "x"), waits)
    server.put(P.student("svc", "y"), student("y"))


def test_services_are_listed_with_rates_and_starvation() -> None:
    server = Server()
    fill(server)
    [row] = server.http.get("/api/v1/services").json()["services"]
    assert (row["service"], row["teachers"], row["draining"], row["students"]) == ("svc", 2, 1, 2)
    assert (row["rate"], row["answered_rate"], row["demand"], row["queue"]) == (200.0, 50.0, 120.0, 3)
    assert (row["starved"], row["starved_s"]) == (0.25, 7.0)


def test_a_service_shows_who_uses_whom() -> None:
    server = Server()
    fill(server)
    found = server.http.get("/api/v1/services/svc").json()
    assert {t["teacher"]: t["students"] for t in found["teacher_records"]} == {"a": ["x"], "b": ["x"]}
    assert [(s["student"], s["starved"]) for s in found["student_records"]] == [("x", 0.5), ("y", 0.0)]


def test_a_service_that_a_job_serves_is_there_before_its_first_teacher() -> None:
    server = Server()
    refused(server.http.get("/api/v1/services/svc"), 404, "there is no service svc", "service")
    job = {"job": "t", "command": ["edl", "teacher", "serve"], "kind": "teacher", "service": "svc"}
    assert server.http.post("/api/v1/jobs", json=job).status_code == 201
    assert server.http.get("/api/v1/services/svc").json()["jobs"] == ["t"]
    refused(server.http.post("/api/v1/jobs", json={**job, "job": "u", "service": None}), 422, "service", "service")


def test_a_job_of_teachers_counts_those_that_serve() -> None:
    server = Server()
    job = {"job": "t", "command": ["edl", "teacher", "serve"], "kind": "teacher", "service": "svc", "max_np": 4}
    assert server.http.post("/api/v1/jobs", json=job).status_code == 201
    for name, fields in (("a", {"job": "t"}), ("b", {"job": "t", "draining": True}), ("c", {"job": "u"}), ("d", {})):
        server.put(P.teacher("svc", name), replace(teacher(name), **fields))
    [row] = server.http.get("/api/v1/jobs").json()["jobs"]
    assert row["world_size"] == 1


def test_prometheus_is_told_of_jobs_teachers_and_students() -> None:
    server = Server()
    fill(server)
    server.http.post("/api/v1/jobs", json=SUBMIT)
    progress = Progress(generation=1, world_size=2, epoch=3, step=9, teacher_wait_s_per_step=0.125)
    server.put(P.progress("j"), progress)
    answer = server.http.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/plain")
    parsed = parse(answer.text)
    of_student = (("job", "train"), ("service", "svc"), ("student", "x"), ("worker", ""))
    assert parsed["edl_student_teacher_wait_seconds_per_step", *of_student] == 0.25
    assert parsed["edl_student_teacher_wait_seconds_total", *of_student] == 7.0
    assert parsed["edl_job_teacher_wait_seconds_per_step", ("job", "j")] == 0.125
    assert parsed["edl_job_workers", ("job", "j")] == 2
    assert parsed["edl_service_rate_samples_per_second", ("service", "svc")] == 200.0
    quantile = (("quantile", "0.99"), ("service", "svc"), ("teacher", "a"))
    assert parsed["edl_service_teacher_latency_seconds", *quantile] == 0.05
    refused(server.http.get("/metrics", headers={}), 401, "token")


def test_services_that_change_do_not_turn_the_loop() -> None:
    """All teachers and students write once a second: the JobServer decides about jobs, not about those."""
    server = Server()
    fill(server)
    server.controller.step()
    server.controller._woken.clear()
    fill(server)
    server.put(P.teacher("svc", "new"), teacher("new"))
    assert not server.controller._woken.is_set()
    server.node()
    assert server.controller._woken.is_set()


def test_a_record_that_cannot_be_read_is_a_problem_of_its_service() -> None:
    server = Server()
    fill(server)
    server.store.set(P.teacher("svc", "c"), b"{", None)
    [problem] = server.http.get("/api/v1/services/svc").json()["problems"]
    assert "/services/svc/teachers/c" in problem


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_ls_and_top(cluster: Cluster) -> None:
    with cluster:
        cluster.store.set(P.teacher("svc", "a"), encode(replace(teacher("a"), latency_p99_s=0.0421)), None)
        cluster.store.set(P.student("svc", "x"), encode(replace(student("x"), starved=0.25)), None)
        assert "svc" in cluster.edl("teacher", "ls").output
        shown = cluster.edl("teacher", "ls", "svc").output
        assert "42.1" in shown
        assert "25%" in shown
        assert cluster.json("teacher", "ls", "svc")["teachers"] == 1
        lines = cluster.edl("teacher", "top", "svc", "--count", "2", "--every", "0.1", "--json").output.splitlines()
        assert [json.loads(line)["service"] for line in lines] == ["svc", "svc"]
        missing = cluster.edl("teacher", "ls", "other")
        assert (missing.exit_code, missing.stderr) == (1, "Error: there is no service other\n")


def test_teachers_are_submitted_by_their_service(cluster: Cluster) -> None:
    with cluster:
        result = cluster.edl("submit", "--service", "svc", "--max-np", "4", "--", "edl", "teacher", "serve")
        assert result.output == "job svc is submitted\n"
        spec = cluster.json("describe", "svc")["spec"]
        assert (spec["kind"], spec["service"], spec["max_np"], spec["np"]) == ("teacher", "svc", 4, None)


def test_no_zookeeper_is_one_line() -> None:
    result = CliRunner().invoke(edl, ["teacher", "ls", "--zookeeper", "127.0.0.1:1", "--root", "edl"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
