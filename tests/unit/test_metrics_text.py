"""What JobServers, JobClients and teachers tell Prometheus: well-formed, with units, and never without an end."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_server import KEY, SUBMIT, P, Server, refused
from fleet_flow import student, teacher
from prometheus_text import parse

from distill.oip import ModelMetadata
from distill.teacher.reports import metrics as teacher_metrics
from distill.teacher.stats import BatchTimes, Stats
from edl_collective.coord.clock import ManualClock
from edl_collective.coord.records import (
    JobStatus,
    NodeRecord,
    Outcome,
    Phase,
    Progress,
    Speed,
    WorkerRecord,
    WorkerState,
)
from jobclient.node_api import make_app
from jobclient.node_metrics import NodeSight

#: labels whose values may be many, and what bounds them: who is there, or is not deleted yet
BOUNDED = {
    *("job", "kind", "phase", "service", "teacher", "student", "worker", "node", "state", "outcome", "quantile"),
    *("status", "model", "model_hash"),
}
NODE = NodeRecord(node="a", incarnation="i", address="127.0.0.1", port=1, slots=4)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.controller.step()
    yield server
    server.controller.stop()


def busy(server: Server) -> None:
    """Everything that there can be."""
    server.put(P.status("j"), JobStatus(phase=Phase.RUNNING, reason="x", since=1.0, speeds=(Speed(1, 2.0),)))
    spent = {"train": 3.0}
    server.put(
        P.progress("j"),
        Progress(generation=2, world_size=1, epoch=1, step=9, loss=0.5, accuracy=0.25, pause_s=1.5, earlier=spent),
    )
    server.put(P.teacher("svc", "t"), teacher("t"))
    server.put(P.student("svc", "s"), student("s"))


def test_a_server_tells_of_the_cluster_its_jobs_and_itself(server: Server) -> None:
    busy(server)
    stranger = server.http.get("/metrics", headers={})
    found = parse(server.http.get("/metrics").text)
    assert stranger.status_code == 401
    assert found["edl_server_answers_total", ("status", "401")] == 1
    assert found["edl_server_leading",] == found["edl_server_zookeeper_connected",] == 1
    assert found["edl_cluster_slots",] == 4
    assert found["edl_cluster_planned_slots",] == 4
    assert found["edl_cluster_jobs", ("phase", "running")] == 1
    assert found["edl_job_last_pause_seconds", ("job", "j")] == 1.5
    assert found["edl_job_loss", ("job", "j")] == 0.5
    assert found["process_resident_memory_bytes",] > 10_000_000
    assert {label for sample in found for label, _ in sample[1:]} <= BOUNDED


def test_closed_nodes_and_ended_jobs_are_counted_as_such(server: Server) -> None:
    server.http.post("/api/v1/nodes/a/cordon", json={})
    server.put(P.status("j"), JobStatus(phase=Phase.FAILED, reason="x", since=1.0))
    found = parse(server.http.get("/metrics").text)
    assert found["edl_cluster_closed_slots",] == 4
    assert found["edl_cluster_planned_slots",] == 0
    assert found["edl_cluster_jobs", ("phase", "failed")] == 1


def test_a_server_without_zookeeper_still_tells_of_itself(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.store.suspend()
    late = "a look would take longer than Prometheus waits"
    monkeypatch.setattr(server.controller.view, "load", lambda **_: pytest.fail(late))
    answer = server.http.get("/metrics")
    assert answer.status_code == 200
    found = parse(answer.text)
    assert found["edl_server_zookeeper_connected",] == found["edl_server_leading",] == 0
    assert [sample for sample in found if sample[0].startswith("edl_cluster")] == []
    refused(server.http.get("/api/v1/jobs"), 503, "cannot be reached (it has no session)")
    assert server.http.get("/api/v1/health").json()["zookeeper"] == "suspended"


async def ask(tmp_path: Path, sight: NodeSight | None, token: str) -> httpx.Response:
    app = make_app(tmp_path / "not made yet", KEY, "a")
    app.state.sight = lambda: sight
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
        return await client.get("/metrics", headers={"Authorization": f"Bearer {token}"})


async def test_a_node_tells_of_its_slots_workers_and_room_for_logs(tmp_path: Path) -> None:
    workers = tuple(
        WorkerRecord(worker=f"w{n}", node="a", slot=n, incarnation="i", state=state)
        for n, state in enumerate((WorkerState.RUNNING, WorkerState.RUNNING, WorkerState.EXITED))
    )
    sight = NodeSight(NODE, workers, {Outcome.FAILED: 3}, True)
    answer = await ask(tmp_path, sight, KEY.read_only_token)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4")
    found = parse(answer.text)
    node = ("node", "a")
    assert (found["edl_node_slots", node], found["edl_node_used_slots", node]) == (4, 3)
    assert found["edl_node_workers", node, ("state", "running")] == 2
    assert found["edl_node_ended_workers_total", node, ("outcome", "failed")] == 3
    assert found["edl_node_ended_workers_total", node, ("outcome", "left")] == 0
    assert 0 < found["edl_node_log_volume_free_bytes", node] <= found["edl_node_log_volume_size_bytes", node]
    assert found["process_open_fds",] > 0
    assert {label for sample in found for label, _ in sample[1:]} <= BOUNDED


@pytest.mark.parametrize("token", ["", "x", KEY.log_token("a", "j", "w1"), KEY.worker_token("j", "w1")])
async def test_a_node_tells_nobody_without_a_token_of_the_interface(tmp_path: Path, token: str) -> None:
    answer = await ask(tmp_path, NodeSight(NODE, (), {}, True), token)
    assert (answer.status_code, "edl_node" in answer.text) == (401, False)


async def test_a_node_that_is_not_registered_yet_says_so(tmp_path: Path) -> None:
    assert (await ask(tmp_path, None, KEY.api_token)).status_code == 503


def test_a_teacher_tells_the_same_form() -> None:
    stats = Stats(ManualClock(5.0))
    stats.ran(BatchTimes(1, 4, begin_s=1.0, end_s=1.5), [1.0])
    stats.sent(200, 10)
    found = parse(teacher_metrics(ModelMetadata('a "b\\\n', versions=("1",), parameters={}), stats, 3, 2))
    assert found["edl_teacher_samples_total", ("model", 'a \\"b\\\\\\n')] == 4
    assert {label for sample in found for label, _ in sample[1:]} <= BOUNDED


def test_what_the_documentation_names_is_there(server: Server) -> None:
    busy(server)
    told = {sample[0] for sample in parse(server.http.get("/metrics").text)}
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    named = set(re.findall(r"\bedl_(?:job|cluster|server|service|student)_[a-z_]*[a-z]\b", text))
    assert len(named) >= 3
    assert named <= told
