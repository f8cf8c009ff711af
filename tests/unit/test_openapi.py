"""The description of the HTTP interface: valid, complete, and its examples are what the interface takes and says."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from api_server import P, Server
from openapi_spec_validator import validate

from distill.records import TeacherRecord
from edl_collective.coord.records import JobStatus, Phase
from jobserver.openapi import ROUTES, Json

#: what needs more than one process: its own tests ask it
_ELSEWHERE = {("get", "/api/v1/jobs/{job}/logs/{worker}"), ("get", "/api/v1/stream")}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    found.node("n1")
    found.http.post("/api/v1/jobs", json=ROUTES["post", "/api/v1/jobs"].body)
    found.controller.step()
    yield found
    found.controller.stop()


def document(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/api/v1/openapi.json").json()
    return found


def operations(server: Server) -> dict[tuple[str, str], Json]:
    paths = document(server)["paths"]
    return {(method, path): operation for path, methods in paths.items() for method, operation in methods.items()}


def test_the_document_is_valid(server: Server) -> None:
    validate(document(server))


def test_every_route_is_described(server: Server) -> None:
    found = operations(server)
    assert found.keys() == ROUTES.keys()
    tags = {tag["name"] for tag in document(server)["tags"]}
    for route, operation in found.items():
        assert operation["summary"] == ROUTES[route].summary
        assert set(operation["tags"]) <= tags
        assert "default" in operation["responses"], "errors have a shape"
        content = operation["responses"][str(ROUTES[route].status)]["content"]
        assert all("example" in found for found in content.values())
        assert "requestBody" not in operation or "example" in operation["requestBody"]["content"]["application/json"]
    assert document(server)["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document(server)["security"] == [{"token": []}]


def prepare(server: Server, path: str) -> None:
    """What a route needs, so that its example works."""
    if path.endswith(("/undrain", "/uncordon")):
        server.http.post(path.replace("un", "", 1).replace("{node}", "n1"))
    if path.startswith("/api/v1/services/"):
        teacher = TeacherRecord(teacher="t1", url="http://h:1", model="m")
        server.store.create(P.teacher("resnet", "t1"), msgspec.json.encode(teacher))


@pytest.mark.parametrize("route", sorted(ROUTES.keys() - _ELSEWHERE))
def test_the_example_of_a_route_is_what_it_takes_and_says(server: Server, route: tuple[str, str]) -> None:
    method, path = route
    described = ROUTES[route]
    if route == ("post", "/api/v1/jobs") or path.endswith("/retry") or method == "delete":
        server.put(P.status("a"), JobStatus(phase=Phase.FAILED, reason="x", since=1.0))
    if route == ("post", "/api/v1/jobs"):
        server.http.request("DELETE", "/api/v1/jobs/a")
    prepare(server, path)
    filled = path.replace("{job}", "a").replace("{node}", "n1").replace("{name}", "resnet")
    query = {"job_id": "a"} if "query_pods" in path else None
    answer = server.http.request(method.upper(), filled, json=described.body, params=query)
    assert answer.status_code == described.status, answer.text
    if isinstance(described.answer, str):
        assert answer.headers["content-type"].startswith("text/plain")
    else:
        assert_says(answer.json(), described.answer)


def assert_says(answer: Any, example: Any) -> None:
    """The answer has whatever the example names, of the same type."""
    if isinstance(example, dict):
        assert isinstance(answer, dict)
        if example.keys() - answer.keys() and all(isinstance(value, float) for value in answer.values()):
            return  # a ledger has the kinds of time that there were
        assert example.keys() <= answer.keys()
        for name, value in example.items():
            assert_says(answer[name], value)
    elif isinstance(example, list):
        assert isinstance(answer, list)
        for one in answer[: len(example)]:
            assert_says(one, example[0])
        assert bool(answer) or not example
    elif example is not None:
        assert isinstance(answer, type(example)) or answer is None


def test_the_schema_of_a_job_takes_what_the_server_takes_and_no_more(server: Server) -> None:
    properties = document(server)["components"]["schemas"]["JobSpec"]["properties"]
    text = server.http.post("/api/v1/jobs", json={"job": "b", "command": ["x"], "colour": 1}).json()["error"]
    assert sorted(properties) == text.partition("it has ")[2].split(", ")
