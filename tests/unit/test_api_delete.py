"""Deleting a job over HTTP: whole or not at all, and nothing of it becomes the next one's."""

from collections.abc import Sequence

import httpx
import pytest
from api_server import SUBMIT, P, Server, refused

from edl_collective.coord.errors import Disconnected
from edl_collective.coord.records import (
    Outcome,
    WorkerRecord,
    WorkerState,
)
from edl_collective.coord.store import Op
from jobserver.reconcile import ReconcileConfig


def ended_job(server: Server) -> None:
    """Job j is stopped; its worker w1 is recorded as running on the living node a."""
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.controller.step()
    server.http.post("/api/v1/jobs/j/stop")
    for _ in range(2):
        server.controller.step()
    server.put(P.worker("j", "w1"), worker(WorkerState.RUNNING))


def worker(state: WorkerState) -> WorkerRecord:
    outcome = Outcome.LEFT if state is WorkerState.EXITED else None
    return WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=state, outcome=outcome)


def below(server: Server, path: str = "/edl/jobs") -> set[str]:
    found = {f"{path}/{name}" for name in server.store.children(path)}
    return found.union(*(below(server, deeper) for deeper in found))


def test_a_job_is_not_deleted_while_a_worker_of_it_may_run(server: Server) -> None:
    ended_job(server)
    answer = server.http.request("DELETE", "/api/v1/jobs/j")
    refused(answer, 409, "worker w1 of job j has not ended on node a: try again when it has")
    server.store.delete(P.node("a"))
    refused(server.http.request("DELETE", "/api/v1/jobs/j"), 409, "has not ended on node a")  # it may come back
    server.clock.advance(ReconcileConfig().absence_timeout_s)
    assert server.http.request("DELETE", "/api/v1/jobs/j").status_code == 200
    assert below(server) == set()


def test_a_deletion_that_is_cut_leaves_the_whole_job(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_job(server)
    server.put(P.worker("j", "w1"), worker(WorkerState.EXITED))
    before = below(server)
    assert {P.spec("j"), P.status("j"), P.plan("j"), P.worker("j", "w1")} < before

    def cut(*_: object, **__: object) -> None:
        raise Disconnected("memory", "cut")

    with monkeypatch.context() as patched:
        patched.setattr(server.store, "transact", cut)
        refused(server.http.request("DELETE", "/api/v1/jobs/j"), 503, "cut")
    assert below(server) == before


def test_a_record_that_comes_during_a_deletion_is_deleted_with_the_job(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_job(server)
    server.put(P.worker("j", "w1"), worker(WorkerState.EXITED))
    transact, sizes = server.store.transact, []

    def disturbed(ops: Sequence[Op]) -> None:
        sizes.append(len(ops))
        if len(sizes) == 1:
            server.store.append(P.event_prefix("j"), b"late")
        transact(ops)

    monkeypatch.setattr(server.store, "transact", disturbed)
    assert server.http.request("DELETE", "/api/v1/jobs/j").status_code == 200
    assert sizes[1] == sizes[0] + 1
    assert below(server) == set()


@pytest.mark.parametrize("how", ["delete", "submit"])
def test_what_is_left_of_a_job_is_not_taken_for_the_next_one(server: Server, how: str) -> None:
    ended_job(server)
    server.store.delete(P.spec("j"))
    server.put(P.worker("j", "w1"), worker(WorkerState.RUNNING))

    def again() -> httpx.Response:
        if how == "delete":
            return server.http.request("DELETE", "/api/v1/jobs/j")
        return server.http.post("/api/v1/jobs", json=SUBMIT)

    refused(again(), 409, "worker w1 of job j has not ended on node a")
    finished = WorkerRecord(
        worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.EXITED, outcome=Outcome.FINISHED
    )
    server.put(P.worker("j", "w1"), finished)
    assert again().status_code == (200 if how == "delete" else 201)
    assert below(server) == (set() if how == "delete" else {P.job("j"), P.spec("j")})
    assert (server.http.post("/api/v1/jobs", json=SUBMIT).status_code) == (201 if how == "delete" else 200)
    server.controller.step()
    assert server.http.get("/api/v1/jobs/j").json()["phase"] == "running"


def test_a_job_whose_spec_cannot_be_read_is_not_deleted(server: Server) -> None:
    server.store.create(P.spec("j"), b"?")
    refused(server.http.request("DELETE", "/api/v1/jobs/j"), 409, "job j is left alone: /edl/jobs/j/spec")
    assert server.store.get(P.spec("j")) is not None
