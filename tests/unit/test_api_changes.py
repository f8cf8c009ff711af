"""Changing a job over HTTP: versions, edits, stops with a reason, retries."""

from collections.abc import Iterator
from typing import Any

import pytest
from api_server import SUBMIT, P, Server, refused

from edl_collective.coord.errors import Disconnected
from edl_collective.coord.records import JobStatus, Outcome, Phase, WorkerRecord, WorkerState
from jobserver.edits import CHANGEABLE


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    found.http.post("/api/v1/jobs", json=SUBMIT)
    yield found
    found.controller.stop()


def patch(server: Server, body: object, tag: str | None = None) -> Any:
    headers = {**server.http.headers, **({} if tag is None else {"If-Match": tag})}
    return server.http.request("PATCH", "/api/v1/jobs/j", json=body, headers=headers)


def end(server: Server, phase: Phase) -> None:
    server.put(P.status("j"), JobStatus(phase=phase, reason="x", since=1.0))


def test_a_job_has_a_version_that_changes_with_it(server: Server) -> None:
    before = server.http.get("/api/v1/jobs/j")
    assert before.headers["etag"] == f'"{before.json()["version"]}"'
    answer = patch(server, {"priority": 5}, before.headers["etag"])
    after = server.http.get("/api/v1/jobs/j")
    assert (answer.status_code, answer.json()["spec"]["priority"]) == (200, 5)
    assert answer.headers["etag"] == after.headers["etag"] != before.headers["etag"]
    server.controller.step()
    assert server.http.get("/api/v1/jobs/j").headers["etag"] == after.headers["etag"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"np": 2}),
        ("POST", "/scale", {"np": 2}),
        ("POST", "/stop", None),
        ("PATCH", "", {"np": 9}),
        ("POST", "/retry", None),
    ],
)
def test_a_change_of_what_was_changed_meanwhile_is_refused(
    server: Server, method: str, path: str, body: object
) -> None:
    seen = server.http.get("/api/v1/jobs/j").headers["etag"]
    patch(server, {"max_np": 3})
    now = server.http.get("/api/v1/jobs/j").json()["version"]
    headers = {**server.http.headers, "If-Match": seen}
    answer = server.http.request(method, f"/api/v1/jobs/j{path}", json=body, headers=headers)
    refused(answer, 412, f"job j was changed meanwhile: it is at version {now}")
    assert (server.spec().np, server.spec().stopped) == (None, False)


@pytest.mark.parametrize("tag", ["*", '"x", {seen}', "{seen}"])
def test_what_if_match_may_say(server: Server, tag: str) -> None:
    seen = server.http.get("/api/v1/jobs/j").headers["etag"]
    assert patch(server, {"np": 2}, tag.format(seen=seen)).status_code == 200


@pytest.mark.parametrize("tag", ["", "x", '"0"', 'W/"0-1000000"', '""'])
def test_what_matches_nothing(server: Server, tag: str) -> None:
    refused(patch(server, {"np": 2}, tag), 412, "was changed meanwhile")


def test_the_version_of_a_forgotten_job_is_not_that_of_the_next_of_its_name(server: Server) -> None:
    seen = server.http.get("/api/v1/jobs/j").headers["etag"]
    end(server, Phase.FAILED)
    assert server.http.request("DELETE", "/api/v1/jobs/j").status_code == 200
    server.clock.advance(1)
    server.http.post("/api/v1/jobs", json=SUBMIT)
    refused(patch(server, {"np": 2}, seen), 412, "was changed meanwhile")


@pytest.mark.parametrize("written", [True, False])
def test_a_lost_answer_of_the_store_is_no_change_by_others(
    server: Server, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    really_set = server.store.set
    lost: list[str] = []

    def set_and_lose(path: str, data: bytes, version: int | None) -> int:
        if lost:
            return really_set(path, data, version)
        lost.append(path)
        if written:
            really_set(path, data, version)
        raise Disconnected("set")

    seen = server.http.get("/api/v1/jobs/j").headers["etag"]
    monkeypatch.setattr(server.store, "set", set_and_lose)
    answer = patch(server, {"np": 2}, seen)
    assert (answer.status_code, server.spec().np, lost) == (200, 2, [P.spec("j")])


def test_edits_go_together_or_not_at_all(server: Server) -> None:
    assert patch(server, {"np": 8, "max_np": 8, "min_np": 2, "priority": -3, "spares": 1}).status_code == 200
    spec = server.spec()
    assert (spec.np, spec.max_np, spec.min_np, spec.priority, spec.spares) == (8, 8, 2, -3, 1)
    refused(patch(server, {"priority": 9, "max_np": 4}), 422, "np is 8: it must be between", "np")
    assert server.spec() == spec
    assert patch(server, {"np": None}).json()["spec"]["np"] is None


@pytest.mark.parametrize(
    ("body", "text", "field"),
    [
        ({}, f"nothing is to change: name at least one of {', '.join(CHANGEABLE)}", None),
        ({"command": ["x"]}, "command cannot change while a job lives", "command"),
        ({"stopped": True}, "stopped cannot change", "stopped"),
        ({"colour": 1}, "a job has no field 'colour' that can change", "colour"),
        ({"priority": None}, "priority: expected `int`, got `null`", "priority"),
        ({"priority": 5000}, "priority is 5000", "priority"),
        ({"min_np": 5}, "min_np must not exceed max_np", "min_np"),
        ({"max_np": "4"}, "max_np: expected `int`, got `str`", "max_np"),
        ({"np": 2.5}, "np: expected `int | null`", "np"),
    ],
)
def test_bad_edits_name_the_field(server: Server, body: object, text: str, field: str | None) -> None:
    before = server.spec()
    refused(patch(server, body), 422, text, field)
    assert server.spec() == before


def test_the_bounds_of_an_external_job_are_those_of_its_horovodrun(server: Server) -> None:
    server.http.post("/api/v1/jobs", json={**SUBMIT, "job": "h", "kind": "external"})
    answer = server.http.request("PATCH", "/api/v1/jobs/h", json={"max_np": 8})
    refused(answer, 422, "its horovodrun was started with it", "max_np")
    assert server.http.request("PATCH", "/api/v1/jobs/h", json={"np": 2}).status_code == 200


def test_an_edit_is_planned(server: Server) -> None:
    server.node(slots=4)
    server.controller.step()
    patch(server, {"max_np": 2})
    server.controller.step()
    assert server.http.get("/api/v1/jobs/j").json()["workers"] == 2


def test_a_stop_says_why(server: Server) -> None:
    server.controller.step()
    assert server.http.post("/api/v1/jobs/j/stop", json={"reason": "wrong data "}).status_code == 200
    server.http.post("/api/v1/jobs/j/stop", json={"reason": "later"})
    server.controller.step()
    found = server.http.get("/api/v1/jobs/j").json()
    assert (found["phase"], found["reason"]) == ("stopped", "stopped as asked: wrong data")
    refused(patch(server, {"np": 2}), 409, "job j has ended: stopped")


@pytest.mark.parametrize("reason", [1, None, "a\nb", "x" * 201])
def test_reasons_are_one_short_line(server: Server, reason: object) -> None:
    refused(server.http.post("/api/v1/jobs/j/stop", json={"reason": reason}), 422, "reason must be a line", "reason")
    refused(server.http.post("/api/v1/jobs/j/stop", json={"why": ""}), 422, "a stop has no field 'why'", "why")


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.STOPPED])
def test_a_job_that_ended_badly_is_submitted_again(server: Server, phase: Phase) -> None:
    server.node()
    server.controller.step()
    server.http.post("/api/v1/jobs/j/scale", json={"np": 2})
    ended = WorkerRecord(
        worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.EXITED, outcome=Outcome.FAILED
    )
    server.put(P.worker("j", "w1"), ended)
    end(server, phase)
    events = len(server.http.get("/api/v1/jobs/j/events").json()["events"])
    server.clock.advance(60)
    answer = server.http.post("/api/v1/jobs/j/retry")
    found = server.http.get("/api/v1/jobs/j")
    assert (answer.status_code, answer.headers["etag"]) == (200, found.headers["etag"])
    assert (server.spec().stopped, server.spec().np, server.spec().submitted_at) == (False, 2, 1060.0)
    assert (found.json()["plan"], found.json()["worker_records"], len(found.json()["events"])) == (None, [], events)
    server.controller.step()
    found = server.http.get("/api/v1/jobs/j")
    assert (found.json()["phase"], found.json()["workers"], found.json()["status"]["attempt"]) == ("running", 2, 1)


def test_only_what_ended_badly_is_retried(server: Server) -> None:
    refused(server.http.post("/api/v1/jobs/j/retry"), 409, "job j has not ended, it is pending")
    end(server, Phase.SUCCEEDED)
    refused(server.http.post("/api/v1/jobs/j/retry"), 409, "job j has succeeded: there is nothing to retry")
    refused(server.http.post("/api/v1/jobs/nope/retry"), 404, "there is no job nope", "job")


def test_a_job_is_not_retried_while_a_worker_of_it_lives(server: Server) -> None:
    server.node()
    alive = WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    server.put(P.worker("j", "w1"), alive)
    end(server, Phase.STOPPED)
    refused(server.http.post("/api/v1/jobs/j/retry"), 409, "worker w1 of job j has not ended on node a")
    assert server.store.get(P.worker("j", "w1")) is not None


def test_ledgers_of_all_jobs(server: Server) -> None:
    server.clock.advance(10)
    row = server.http.get("/api/v1/goodput").json()["jobs"]["j"]
    assert row == {"goodput": server.http.get("/api/v1/jobs/j").json()["goodput"], "train_part": 0.0}
    assert sum(row["goodput"].values()) == 10.0
