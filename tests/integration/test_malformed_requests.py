"""Malformed requests: what a generator makes of the interface's description, and bytes that are no HTTP."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
import uvicorn
from api_server import KEY, SUBMIT, TOKEN, P, Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from edl_collective.coord.job_spec import TIMEOUTS
from edl_collective.coord.records import JobSpec, WorkerRecord, WorkerState
from jobclient.http_limits import LimitedHttp
from jobserver.api_models import MAX_BODY_BYTES

pytestmark = pytest.mark.integration

EXAMPLES = 10
TOKENS = {"writer": TOKEN, "reader": KEY.read_only_token, "nobody": "wrong"}
#: names that exist: half of the requests are for them, so that these get past the look for the name
KNOWN = {"job": "j", "job_id": "j", "node": "a", "worker": "w1", "name": "s"}
#: what the description does not tell yet
BODIES = {
    "/api/v1/jobs/{job}/scale": {"type": "object", "properties": {"np": {"type": ["integer", "null"]}}},
    "/api/v1/nodes/{node}/drain": {
        "type": "object",
        "properties": {"deadline_s": {"type": "number"}, "absent": {"type": "boolean"}},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    server.node(port=1)
    server.http.post("/api/v1/jobs", json=SUBMIT)
    worker = WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    server.put(P.worker("j", "w1"), worker)
    server.controller.step()
    yield server
    server.controller.stop()


def description(server: Server) -> dict[str, Any]:
    """As the server gives it, with bodies."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(server.http.app.openapi()))
    (spec,), parts = msgspec.json.schema_components([JobSpec], ref_template="#/components/schemas/{name}")
    found.setdefault("components", {}).setdefault("schemas", {}).update(parts)
    for path, schema in {**BODIES, "/api/v1/jobs": spec}.items():
        found["paths"][path]["post"]["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    del found["paths"]["/api/v1/stream"]  # it never ends
    return found


@pytest.mark.parametrize("whose", TOKENS)
def test_what_is_generated_from_the_description_breaks_nothing(server: Server, whose: str) -> None:
    schema = schemathesis.openapi.from_dict(description(server))
    headers, seen = {"Authorization": f"Bearer {TOKENS[whose]}"}, []
    reached: set[tuple[str, str]] = set()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        varies = bool(operation.query.items or operation.path_parameters.items or operation.body.items)
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if varies else [GenerationMode.POSITIVE]

        @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]), aimed=st.booleans())
        @settings(max_examples=EXAMPLES if varies else 1, database=None, suppress_health_check=list(HealthCheck))
        def attack(case: schemathesis.Case[Any], aimed: bool) -> None:
            for place in (case.path_parameters, case.query) if aimed else ():
                place.update({name: KNOWN[name] for name in place if name in KNOWN})
            sent = case.as_transport_kwargs(base_url="http://server")
            path, data = sent["url"].removeprefix("http://server"), sent.get("data")
            parts = {name: sent[name] for name in ("params", "json") if sent.get(name) is not None}
            if data is not None:
                parts["content"] = data if isinstance(data, bytes) else str(data).encode("utf-8", "replace")
            answer = server.http.request(sent["method"], path, headers=headers, **parts)
            # 502: the node of the log does not listen
            assert answer.status_code < 500 or answer.status_code == 502, (sent, answer.text)
            route, status = (sent["method"].upper(), case.operation.path), answer.status_code
            seen.append(status)
            if status < 300:
                reached.add(route)
            if whose == "nobody" and case.operation.path != "/api/v1/health":
                assert status == 401, (sent, answer.text)
            if whose == "reader" and route[0] != "GET":
                assert status == 403, (sent, answer.text)

        attack()
    assert len(seen) >= 60
    if whose == "writer":  # it is the handlers that withstand this, not the door before them
        assert len(reached) >= 10, reached
        assert {404, 422} <= set(seen)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([field.name for field in msgspec.structs.fields(JobSpec)])


@given(fields=st.dictionaries(FIELDS, JSON, max_size=4))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_a_spec_with_any_values_is_an_answer(server: Server, fields: dict[str, Any]) -> None:
    body = msgspec.json.encode({**SUBMIT, **fields})
    answer = server.http.post("/api/v1/jobs", content=body)
    assert answer.status_code in (200, 201, 400, 409, 413, 422), answer.text


_WHOLE = st.sampled_from([-1, 0, 1, 2, 1000, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 10**30])
_SECONDS = st.sampled_from([-1.0, 0.0, 5e-324, 1e-9, 1.0, 1e9, 1e18, 1.7e308])
_STEPS = st.lists(st.fixed_dictionaries({"epoch": _WHOLE, "np": _WHOLE}), min_size=1, max_size=2)
_TIMES = st.lists(st.fixed_dictionaries({"after_s": _SECONDS, "np": _WHOLE}), min_size=1, max_size=2)
_CHANGE = st.fixed_dictionaries({"every_s": _SECONDS, "add": _WHOLE, "remove": _WHOLE})
_SCHEDULES = st.one_of(
    *(st.fixed_dictionaries({n: s}) for n, s in (("epochs", _STEPS), ("times", _TIMES), ("change", _CHANGE)))
)
_EXTREMES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("np", "spares", "priority", "max_restarts", "max_failures"), _WHOLE),
    **dict.fromkeys(TIMEOUTS, _SECONDS),
    "min_np": st.sampled_from([1, 1, 1, 2, 10**9]),
    "schedule": _SCHEDULES,
    "kind": st.sampled_from(["elastic", "external", "teacher"]),
    "service": st.just("s"),
}


@given(fields=st.fixed_dictionaries({"max_np": _WHOLE}, optional=_EXTREMES))
@settings(max_examples=150, deadline=30_000, suppress_health_check=list(HealthCheck))
def test_whatever_is_accepted_stops_neither_the_loop_nor_a_view(server: Server, fields: dict[str, Any]) -> None:
    http, body = server.http, {**SUBMIT, "job": "extreme", **fields}
    if http.post("/api/v1/jobs", json=body).status_code != 201:
        return
    for _ in range(3):
        server.controller.step()
        server.clock.advance(700.0)
    for path in ("/api/v1/jobs", "/api/v1/jobs/extreme", "/api/v1/nodes", "/metrics"):
        assert http.get(path).status_code == 200, path
    assert http.post("/api/v1/jobs/extreme/stop").status_code in (200, 409)
    server.controller.step()
    server.controller.step()
    assert http.request("DELETE", "/api/v1/jobs/extreme").status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b'{"a":' * 12_000, 400),
        (b'{"job":' + b'"a",' * 10, 400),
        (b'{"job": "x", "command": ["' + b"a" * 70_000 + b'"]}', 413),
        (b" " * (MAX_BODY_BYTES + 1), 413),
        (b'{"job": "x", "command": ["a"], "min_np": 1e400}', 400),
        (b'{"job": "x", "command": ["a"], "min_np": ' + b"9" * 5000 + b"}", 400),
        (b'{"job": "../x", "command": ["a"]}', 422),
        (b'{"job": "x\\u0000", "command": ["a"]}', 422),
    ],
)
def test_a_body_that_cannot_be_is_refused(server: Server, body: bytes, status: int) -> None:
    answer = server.http.post("/api/v1/jobs", content=body)
    assert answer.status_code in {400: (400, 422)}.get(status, (status,)), answer.text
    assert set(answer.json()) == {"error", "field"}


RAW = (
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /api/v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\n",
    b"GET /api/v1/jobs/%00%2e%2e%2f HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET //api/v1/../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
)


def test_bytes_that_are_no_request_end_that_connection_alone(server: Server) -> None:
    config = uvicorn.Config(server.http.app, http=LimitedHttp, log_config=None, lifespan="off")
    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        for raw in RAW:
            assert not _sent(listener.getsockname(), raw).startswith(b"HTTP/1.1 5"), raw[:60]
        good = b"GET /api/v1/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        assert _sent(listener.getsockname(), good).startswith(b"HTTP/1.1 200")
    finally:
        uvicorn_server.should_exit = True
        thread.join()


def _sent(address: tuple[str, int], raw: bytes) -> bytes:
    """What came back until the other side ended the connection, or had nothing more to say to half a request."""
    heard = b""
    with socket.create_connection(address, timeout=30) as connection:
        try:
            connection.sendall(raw)
            if b"Connection: close" not in raw:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                heard += part
        except ConnectionError:
            return heard  # it was cut off
    return heard
