"""The HTTP interface on a store in this process: what it accepts, what it refuses and with which sentence."""

import http.server
import threading

import pytest
from api_server import KEY, SUBMIT, TOKEN, P, Server, refused

from edl_collective.coord.job_spec import ChangeRule
from edl_collective.coord.records import JobSpec, Outcome, WorkerRecord, WorkerState
from jobserver.changing import Changing


def test_submit_is_stored_and_the_same_again_is_no_error(server: Server) -> None:
    answer = server.http.post("/api/v1/jobs", json=SUBMIT)
    assert (answer.status_code, answer.json()["created"]) == (201, True)
    assert server.spec() == JobSpec(job="j", command=("python", "train.py"), max_np=4, submitted_at=1000.0)
    server.clock.advance(5)
    assert server.http.post("/api/v1/jobs", json=SUBMIT).status_code == 200
    assert server.spec().submitted_at == 1000.0


def test_another_job_of_the_same_name_is_refused(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    answer = server.http.post("/api/v1/jobs", json={**SUBMIT, "max_np": 5, "command": ["x"]})
    refused(answer, 409, "exists already with a different command, max_np", "command")
    assert server.spec().max_np == 4


def test_submitting_again_after_a_scale_is_the_same_job_unless_it_says_np(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.http.post("/api/v1/jobs/j/scale", json={"np": 3})
    assert server.http.post("/api/v1/jobs", json=SUBMIT).status_code == 200
    refused(server.http.post("/api/v1/jobs", json={**SUBMIT, "np": 2}), 409, "different np", "np")


@pytest.mark.parametrize(
    ("changes", "text", "field"),
    [
        ({"min_np": 5}, "min_np must not exceed max_np", "min_np"),
        ({"min_np": 0}, "min_np is 0: it must be at least 1", "min_np"),
        ({"np": 9}, "np is 9: it must be between", "np"),
        ({"command": []}, "command is empty", "command"),
        ({"command": None}, "command: expected `array`, got `null`", "command"),
        ({"max_np": "4"}, "max_np: expected `int`, got `str`", "max_np"),
        ({"job": "a/b"}, "cannot name a job", "job"),
        ({"job": None}, "job: expected `str`", "job"),
        ({"colour": 1}, "a job has no field 'colour'", "colour"),
        ({"stopped": True}, "a job has no field 'stopped'", "stopped"),
        ({"schedule": {"times": [{"after_s": -5, "np": 1}]}}, "rise from 0", "schedule"),
        ({"schedule": {"epochs": [{"epoch": 0, "np": 9}]}}, "np 9 must be between", "schedule"),
        ({"max_failures": -1}, "max_failures is -1", "max_failures"),
        ({"hold_timeout_s": 0}, "hold_timeout_s is 0", "hold_timeout_s"),
        ({"kind": "strange"}, "Invalid enum value 'strange'", "kind"),
        ({"env": {"A": 1}}, "expected `str`, got `int`", "env[...]"),
        ({"command": ["a", "b\0"]}, "command holds a NUL byte in 'b\\x00'", "command"),
        ({"work_dir": "/\0"}, "work_dir holds a NUL byte", "work_dir"),
        ({"package_hook": "\0"}, "package_hook holds a NUL byte", "package_hook"),
        ({"pod_path": "\0"}, "pod_path holds a NUL byte", "pod_path"),
        ({"env": {"A": "\0"}}, "env holds a NUL byte", "env"),
        ({"env": {"A\0": ""}}, "env holds a NUL byte", "env"),
        ({"env": {"A=B": "1"}}, "env has a variable named 'A=B'", "env"),
        ({"env": {"": "1"}}, "env has a variable named ''", "env"),
    ],
)
def test_a_bad_spec_gets_one_sentence_and_its_field(
    server: Server, changes: dict[str, object], text: str, field: str
) -> None:
    answer = server.http.post("/api/v1/jobs", json={**SUBMIT, **changes})
    assert answer.status_code == 422
    assert text.lower() in answer.json()["error"].lower()
    assert answer.json()["field"] == field
    assert server.store.children(P.jobs) == []


def test_a_missing_field_is_named(server: Server) -> None:
    refused(server.http.post("/api/v1/jobs", json={"job": "j"}), 422, "command is missing", "command")


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"1e", b'"x"', b"[" * 60000])
def test_malformed_json_is_refused(server: Server, body: bytes) -> None:
    answer = server.http.post("/api/v1/jobs", content=body)
    assert answer.status_code == 400
    assert "body" in answer.json()["error"]


def test_a_large_body_is_refused(server: Server) -> None:
    answer = server.http.post("/api/v1/jobs", content=b" " * 70_000)
    refused(answer, 413, "larger than 65536 bytes")


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", "Bearer ü", TOKEN])
@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/nodes", "/api/v1/openapi.json", "/rest/1.0/get/query_pods"])
def test_everything_needs_the_token(server: Server, token: str | None, path: str) -> None:
    headers = {} if token is None else {"Authorization": token.encode()}
    del server.http.headers["Authorization"]
    refused(server.http.get(path, headers=headers), 401, "bearer token")


def test_health_shows_what_is_wrong(server: Server) -> None:
    server.controller.step()
    server.store.create(P.spec("broken"), b"{}")
    health = server.http.get("/api/v1/health").json()
    assert (health["ok"], health["leading"], health["epoch"], health["leader"]) == (False, True, 1, "s1")
    assert P.spec("broken") in health["problems"][0]
    assert health["reason"] == "no job that has not ended"
    server.store.suspend()
    health = server.http.get("/api/v1/health").json()
    assert (health["leading"], health["zookeeper"]) == (False, "suspended")
    server.store.resume()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_health_tells_strangers_only_how_much_is_wrong(server: Server, headers: dict[str, str]) -> None:
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.controller.step()
    health = server.http.get("/api/v1/health", headers=headers).json()
    assert health == {"ok": True, "leader": "s1", "zookeeper": "connected", "problem_count": 0}
    server.store.suspend()
    health = server.http.get("/api/v1/health", headers=headers).json()
    assert (health["ok"], health["zookeeper"]) == (False, "suspended")
    server.store.resume()
    server.store.create(P.spec("broken"), b"{}")
    health = server.http.get("/api/v1/health", headers=headers).json()
    assert health == {"ok": False, "leader": "s1", "zookeeper": "connected", "problem_count": 1}


def test_without_zookeeper_reads_say_so(server: Server) -> None:
    server.store.suspend()
    refused(server.http.get("/api/v1/jobs"), 503, "check --zookeeper")
    server.store.resume()


def test_unknown_jobs_and_routes(server: Server) -> None:
    for method, path in [("GET", ""), ("POST", "/scale"), ("POST", "/stop"), ("DELETE", ""), ("GET", "/events")]:
        answer = server.http.request(method, f"/api/v1/jobs/nope{path}", json={"np": 1} if path == "/scale" else None)
        refused(answer, 404, "there is no job nope", "job")
    refused(server.http.get("/api/v1/nothing"), 404, "Not Found")
    refused(server.http.request("PUT", "/api/v1/jobs"), 405, "Method Not Allowed")


def test_scale_and_back_to_the_schedule(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    assert server.http.post("/api/v1/jobs/j/scale", json={"np": 3}).json()["spec"]["np"] == 3
    assert server.http.post("/api/v1/jobs/j/scale", json={"np": None}).status_code == 200
    assert server.spec().np is None
    refused(server.http.post("/api/v1/jobs/j/scale", json={"np": 9}), 422, "np is 9", "np")
    refused(server.http.post("/api/v1/jobs/j/scale", json={"np": "many"}), 422, "np: expected `int | null`", "np")
    refused(server.http.post("/api/v1/jobs/j/scale", json={}), 422, "exactly one field", "np")


def test_the_life_of_a_job_over_http(server: Server) -> None:
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.controller.step()
    job = server.http.get("/api/v1/jobs/j").json()
    assert (job["phase"], job["workers"], job["plan"]["revision"]) == ("running", 4, 1)
    assert [event["kind"] for event in job["events"]] == ["plan", "job"]
    last = job["events"][0]["number"]
    after = server.http.get(f"/api/v1/jobs/j/events?after={last}").json()["events"]
    assert [event["kind"] for event in after] == ["job"]
    refused(server.http.get("/api/v1/jobs/j/events?after=x"), 422, "after: ", "after")
    assert server.http.get("/api/v1/jobs").json()["jobs"][0]["job"] == "j"
    assert len(server.http.get("/api/v1/nodes").json()["nodes"][0]["workers"]) == 4
    assert server.http.get("/api/v1/jobs/j/hosts").json() == {"hosts": [{"host": "127.0.0.1", "slots": 4}]}
    refused(server.http.request("DELETE", "/api/v1/jobs/j"), 409, "stop it first")
    server.http.post("/api/v1/jobs/j/stop")
    server.controller.step()
    server.controller.step()
    assert server.http.get("/api/v1/jobs/j").json()["phase"] == "stopped"
    refused(server.http.post("/api/v1/jobs/j/scale", json={"np": 1}), 409, "job j has ended: stopped")
    assert server.http.request("DELETE", "/api/v1/jobs/j").status_code == 200
    refused(server.http.get("/api/v1/jobs/j"), 404, "there is no job j", "job")


def test_a_job_that_cannot_be_read_says_why(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.store.set(P.plan("j"), b"?", None)
    refused(server.http.get("/api/v1/jobs/j"), 409, "job j is left alone: /edl/jobs/j/plan does not hold")


def test_an_event_that_cannot_be_read_is_shown(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.store.append(P.event_prefix("j"), b"?")
    events = server.http.get("/api/v1/jobs/j/events").json()["events"]
    assert [event["kind"] for event in events] == ["unreadable"]


def test_the_changing_script_fills_in_what_a_job_leaves_open() -> None:
    changing = Server(Changing(ChangeRule(900.0, 1, 2), 8))
    answer = changing.http.post("/api/v1/jobs", json={"job": "j", "command": ["x"]})
    assert answer.status_code == 201
    spec = changing.spec()
    assert spec.schedule is not None
    assert (spec.schedule.change, spec.max_np) == (ChangeRule(900.0, 1, 2), 8)
    assert changing.http.post("/api/v1/jobs", json={"job": "j", "command": ["x"]}).status_code == 200
    changing.http.post("/api/v1/jobs", json={**SUBMIT, "job": "k", "np": 2})
    assert (changing.spec("k").schedule, changing.spec("k").max_np) == (None, 4)
    changing.controller.stop()


def test_the_predecessors_query(server: Server) -> None:
    server.node(slots=1)
    server.http.post("/api/v1/jobs", json=SUBMIT)
    assert server.http.get("/rest/1.0/get/query_pods?job_id=j").json() == {
        "job_id": "j",
        "pods": [],
        "job_stage_flag": -1,
    }
    server.controller.step()
    server.put(
        P.worker("j", "w1"), WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    )
    found = server.http.get("/rest/1.0/get/query_pods?job_id=j").json()
    pod = {"pod_id": "w1", "running": True, "addr": "127.0.0.1", "pod_port": 1, "trainer_ports": [], "gpus": [0]}
    assert found == {"job_id": "j", "pods": [pod], "job_stage_flag": 1}


class _Logs(http.server.BaseHTTPRequestHandler):
    """What a JobClient answers for its logs."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Authorization"]))
        body = b"hello\n"
        self.send_response(200)
        self.send_header("X-EDL-Size", "6")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_logs_come_from_the_node_that_has_them(server: Server) -> None:
    seen: list[tuple[str, str | None]] = []
    handler = type("Handler", (_Logs,), {"seen": seen})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as node:
        thread = threading.Thread(target=node.handle_request)
        thread.start()
        server.node(port=node.server_port)
        server.http.post("/api/v1/jobs", json=SUBMIT)
        refused(server.http.get("/api/v1/jobs/j/logs/w1"), 404, "no record of a worker w1", "worker")
        ended = WorkerRecord(
            worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.EXITED, outcome=Outcome.LEFT
        )
        server.put(P.worker("j", "w1"), ended)
        answer = server.http.get("/api/v1/jobs/j/logs/w1?offset=3&limit=10")
        thread.join()
    assert (answer.text, answer.headers["x-edl-size"]) == ("hello\n", "6")
    assert seen == [("/logs/j/w1?offset=3&limit=10", f"Bearer {KEY.log_token('a', 'j', 'w1')}")]
    refused(server.http.get("/api/v1/jobs/j/logs/w1"), 502, "does not answer")
    server.store.delete(P.node("a"))
    refused(server.http.get("/api/v1/jobs/j/logs/w1"), 503, "node a, which is gone")
