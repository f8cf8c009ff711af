"""Attacks on the HTTP interface: stolen tokens, specs that were written past it, records that lead elsewhere."""

import http.server
import threading

import pytest
from api_server import KEY, SIGNER, SUBMIT, P, Server, refused
from fastapi.routing import APIRoute

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import JobSpec, NodeRecord, WorkerRecord, WorkerState, decode, encode
from edl_collective.coord.signing import SpecSigner
from jobserver.api_page import is_page

READER = {"Authorization": f"Bearer {KEY.read_only_token}"}


def routes(server: Server) -> list[tuple[str, str]]:
    found = [r for r in server.http.app.routes if isinstance(r, APIRoute)]
    return [(method, route.path) for route in found for method in sorted(route.methods or ())]


def test_the_read_only_token_changes_nothing_by_any_route(server: Server) -> None:
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    before = {path: server.store.get(path) for path in (P.jobs, P.spec("j"), P.drains)}
    tried = 0
    for method, path in [*routes(server), ("PUT", "/api/v1/jobs"), ("PATCH", "/api/v1/jobs/{job}"), ("HEAD", "/")]:
        if method == "GET":
            continue
        place = path.replace("{job}", "j").replace("{node}", "a")
        answer = server.http.request(method, place, headers=READER, json={"np": 2})
        assert answer.status_code == 403, (method, place)
        if method != "HEAD":
            refused(answer, 403, "this token is read-only: it changes nothing")
        tried += 1
    assert tried >= 7
    assert {path: server.store.get(path) for path in before} == before


def test_the_read_only_token_sees_jobs_but_not_what_their_environment_holds(server: Server) -> None:
    server.http.post("/api/v1/jobs", json={**SUBMIT, "env": {"PASSWORD": "very secret"}})
    seen = server.http.get("/api/v1/jobs/j", headers=READER)
    assert seen.json()["spec"]["env"] == {"PASSWORD": "(hidden from the read-only token)"}
    for path in ("/api/v1/jobs", "/api/v1/jobs/j", "/api/v1/jobs/j/events", "/api/v1/nodes", "/api/v1/health"):
        answer = server.http.get(path, headers=READER)
        assert answer.status_code == 200
        assert "very secret" not in answer.text
    assert server.http.get("/api/v1/jobs/j").json()["spec"]["env"] == {"PASSWORD": "very secret"}
    assert "problems" in server.http.get("/api/v1/health", headers=READER).json()


@pytest.mark.parametrize(
    "token",
    [
        *("", "edl", KEY.control_token, KEY.services_token, KEY.log_token("a", "j", "w1"), KEY.worker_token("j", "w1")),
        *(ClusterKey(b"s" * 32).api_token, KEY.api_token[:-1], KEY.api_token + "0", KEY.secret.decode(), "\N{SNOWMAN}"),
    ],
)
def test_no_other_token_opens_anything(server: Server, token: str) -> None:
    headers = [(b"authorization", f"Bearer {token}".encode())]
    for method, path in routes(server):
        if path != "/api/v1/health" and not is_page(path):
            assert server.http.request(method, path, headers=headers).status_code == 401, path


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://server"])
def test_pages_of_other_origins_are_told_nothing(server: Server, origin: str) -> None:
    """No cookie admits anybody, and no answer allows another page to read it or to send the header with the token."""
    for method, path in [*routes(server), ("OPTIONS", "/api/v1/jobs")]:
        if path == "/api/v1/stream":
            continue
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Cookie": f"token={KEY.api_token}"}
        answer = server.http.request(method, path, headers={**asked, "Access-Control-Request-Headers": "authorization"})
        if not is_page(path) and path != "/api/v1/health":
            assert answer.status_code == 401, path
        assert [name for name in answer.headers if name.startswith("access-control")] == []
        assert "set-cookie" not in answer.headers
    with_token = server.http.get("/api/v1/jobs", headers={"Origin": origin, "Authorization": f"Bearer {KEY.api_token}"})
    assert (with_token.status_code, "access-control-allow-origin" in with_token.headers) == (200, False)


@pytest.mark.parametrize("data", [encode(JobSpec(job="j", command=("steal",), max_np=4)), b"{}"])
def test_a_spec_that_was_written_past_the_interface_is_never_signed_by_it(server: Server, data: bytes) -> None:
    server.node()
    server.store.create(P.spec("j"), data)
    for path, body in (("/j/scale", {"np": 2}), ("/j/stop", None), ("", {**SUBMIT, "command": ["steal"]})):
        refused(server.http.post(f"/api/v1/jobs{path}", json=body), 409, "job j is left alone: /edl/jobs/j/spec")
    server.controller.step()
    server.controller.step()
    found = server.store.get(P.spec("j"))
    assert found is not None
    assert (found.data, found.version) == (data, 0)
    assert server.store.get(P.plan("j")) is None
    health = server.http.get("/api/v1/health").json()
    assert [P.spec("j") in text for text in health["problems"]] == [True]


def test_a_spec_that_nobody_signed_can_be_deleted_but_not_under_a_living_worker(server: Server) -> None:
    server.node()
    server.store.create(P.spec("j"), encode(JobSpec(job="j", command=("steal",))))
    server.put(
        P.worker("j", "w1"), WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    )
    refused(server.http.request("DELETE", "/api/v1/jobs/j"), 409, "worker w1 of job j has not ended")
    server.store.delete(P.worker("j", "w1"))
    assert server.http.request("DELETE", "/api/v1/jobs/j").status_code == 200
    assert server.http.post("/api/v1/jobs", json=SUBMIT).status_code == 201


def test_a_spec_that_was_put_back_is_left_alone_and_can_be_deleted(server: Server) -> None:
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    old = server.store.get(P.spec("j"))
    assert server.http.post("/api/v1/jobs/j/scale", json={"np": 2}).status_code == 200
    new = server.store.get(P.spec("j"))
    assert old is not None
    assert new is not None
    server.controller.step()
    server.store.set(P.spec("j"), old.data, new.version)
    refused(server.http.post("/api/v1/jobs/j/stop"), 409, "job j is left alone: /edl/jobs/j/spec is an older spec")
    assert server.http.request("DELETE", "/api/v1/jobs/j").status_code == 200
    server.store.create(P.spec("j"), new.data)
    refused(server.http.get("/api/v1/jobs/j"), 409, "older spec of this job that somebody put back")
    assert server.http.request("DELETE", "/api/v1/jobs/j").status_code == 200
    server.clock.advance(-100.0)  # of another JobServer, which the job reaches next
    assert server.http.post("/api/v1/jobs", json=SUBMIT).status_code == 201
    assert server.http.get("/api/v1/jobs/j").status_code == 200
    assert server.spec().submitted_at > decode(new.data, JobSpec).submitted_at


def test_every_write_of_the_interface_signs(server: Server) -> None:
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    for path, body in (("scale", {"np": 2}), ("stop", None)):
        assert server.http.post(f"/api/v1/jobs/j/{path}", json=body).status_code == 200
        found = server.store.get(P.spec("j"))
        assert found is not None
        assert SIGNER.is_signed(P.spec("j"), found.data)
    assert "signature" not in server.http.get("/api/v1/jobs/j").json()["spec"]


def test_a_node_with_slots_without_end_is_a_problem_and_costs_nothing(server: Server) -> None:
    server.node()
    record = encode(NodeRecord(node="huge", incarnation="i", address="127.0.0.1", port=1, slots=4))
    server.store.create(P.node("huge"), record.replace(b'"slots":4', b'"slots":1000000000000'))
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.controller.step()
    assert [row["node"] for row in server.http.get("/api/v1/nodes").json()["nodes"]] == ["a"]
    assert server.http.get("/api/v1/jobs/j").json()["workers"] == 4
    [problem] = server.http.get("/api/v1/health").json()["problems"]
    assert (P.node("huge") in problem, "a node has at most 4096" in problem) == (True, True)


@pytest.mark.parametrize(
    "proof", [SIGNER.node_proof("b", "i"), "", None, SIGNER.node_proof("b", "other"), "\N{SNOWMAN}"]
)
def test_nothing_is_planned_on_a_node_whose_jobclient_has_another_key(server: Server, proof: str | None) -> None:
    """It would refuse the spec, and the world would wait for its worker until the warm time-out."""
    theirs = SpecSigner(ClusterKey(b"s" * 32)).node_proof("b", "i") if proof is None else proof
    server.node()
    server.put(P.node("b"), NodeRecord(node="b", incarnation="i", address="h", port=1, slots=4, proof=theirs))
    server.http.post("/api/v1/jobs", json={**SUBMIT, "max_np": 8})
    server.controller.step()
    trusted = proof in ("", SIGNER.node_proof("b", "i"))
    rows = server.http.get("/api/v1/nodes").json()["nodes"]
    assert [row["node"] for row in rows] == (["a", "b"] if trusted else ["a"])
    assert "proof" not in rows[0]
    assert server.http.get("/api/v1/jobs/j").json()["workers"] == (8 if trusted else 4)
    problems = server.http.get("/api/v1/health").json()["problems"]
    assert [P.node("b") in text and "--key-file" in text for text in problems] == ([] if trusted else [True])


class _Thief(http.server.BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.headers["Authorization"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Set-Cookie", "stolen=1")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Not of interest."""


def test_a_forged_node_learns_no_token_that_opens_the_interface(server: Server) -> None:
    seen: list[str] = []
    handler = type("Handler", (_Thief,), {"seen": seen})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as thief:
        thread = threading.Thread(target=thief.handle_request)
        thread.start()
        record = NodeRecord(node="evil", incarnation="i", address="127.0.0.1", port=thief.server_port, slots=1)
        server.put(P.node("evil"), record)
        server.http.post("/api/v1/jobs", json=SUBMIT)
        worker = WorkerRecord(worker="w1", node="evil", slot=0, incarnation="i", state=WorkerState.RUNNING)
        server.put(P.worker("j", "w1"), worker)
        answer = server.http.get("/api/v1/jobs/j/logs/w1")
        thread.join()
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert seen == [f"Bearer {KEY.log_token('evil', 'j', 'w1')}"]
    stolen = {"Authorization": seen[0]}
    assert server.http.get("/api/v1/jobs", headers=stolen).status_code == 401


@pytest.mark.parametrize("address", ["", "no such host", "a\nb", "127.0.0.1:1/x", "\N{SNOWMAN}", "x" * 300])
def test_a_record_with_an_address_that_cannot_be_is_an_answer(server: Server, address: str) -> None:
    server.put(P.node("a"), NodeRecord(node="a", incarnation="i", address=address, port=1, slots=1))
    server.http.post("/api/v1/jobs", json=SUBMIT)
    worker = WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    server.put(P.worker("j", "w1"), worker)
    refused(server.http.get("/api/v1/jobs/j/logs/w1"), 502, "the JobClient of node a")


@pytest.mark.parametrize("offset", ["-1", str(2**63), "1" * 5000, "x", "1.5", ""])
def test_an_offset_that_cannot_be_is_refused(server: Server, offset: str) -> None:
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    worker = WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    server.put(P.worker("j", "w1"), worker)
    assert server.http.get(f"/api/v1/jobs/j/logs/w1?offset={offset}").status_code == 422
