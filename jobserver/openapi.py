"""The description of the HTTP interface: GET /api/v1/openapi.json. [pure]

Invariant: every route has a summary, a tag, an example of its answer and, where it takes a body, of that; the tests
send the examples and compare the answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edl_collective.coord.records import JobSpec

Json = dict[str, Any]

_HIDDEN = ("schema", "submitted_at", "stopped", "stop_reason")
_TAGS = {
    "jobs": "Submit, look at and change jobs.",
    "nodes": "Machines, and orders for them.",
    "services": "Teachers and students of knowledge distillation.",
    "server": "The JobServer itself.",
}
_SPEC: Json = {"job": "a", "command": ["python", "train.py"], "min_np": 1, "max_np": 8}
_CHANGED: Json = {"job": "a", "version": "1-1760000000000", "spec": _SPEC}
_NP: Json = {"type": ["integer", "null"], "description": "wanted workers; null: what the schedule says"}


@dataclass(frozen=True, slots=True)
class Route:
    """`answer` and `body`: examples; `answer` is text where the route answers no JSON. `schema`: of the body."""

    summary: str
    tag: str
    answer: Json | str
    body: Json | None = None
    schema: Json | None = None
    status: int = 200


def _object(required: tuple[str, ...] = (), **properties: Json) -> Json:
    found: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


_ABSENT: Json = {"type": "boolean", "description": "the node may be unknown"}
_EDITS: Json = {name: {"type": "integer"} for name in ("min_np", "max_np", "priority", "spares")}
_EVENT: Json = {
    "number": 7,
    "at": 1760000000.5,
    "kind": "plan",
    "text": "2 to 4 workers: np 4 was asked for",
    "fields": {},
}

#: by method and path; a route that is not here gets a summary from its name and no example
ROUTES: Mapping[tuple[str, str], Route] = {
    ("post", "/api/v1/jobs"): Route(
        "Submit a job; the same again is no error, and answers 200",
        "jobs",
        {"job": "a", "created": True, "spec": _SPEC},
        _SPEC,
        {"$ref": "#/components/schemas/JobSpec"},
        201,
    ),
    ("get", "/api/v1/jobs"): Route("All jobs, the oldest first", "jobs", {"jobs": [{"job": "a", "phase": "running"}]}),
    ("get", "/api/v1/jobs/{job}"): Route(
        "Everything about a job, with its version as ETag",
        "jobs",
        {"job": "a", "phase": "running", "version": "1-1760000000000", "spec": _SPEC},
    ),
    ("patch", "/api/v1/jobs/{job}"): Route(
        "Change a job that waits or runs: all of the changes or none",
        "jobs",
        _CHANGED,
        {"np": 4, "max_np": 8, "priority": 5},
        {**_object(np=_NP, **_EDITS), "minProperties": 1},
    ),
    ("post", "/api/v1/jobs/{job}/scale"): Route(
        "Change how many workers a job has", "jobs", _CHANGED, {"np": 4}, _object(("np",), np=_NP)
    ),
    ("post", "/api/v1/jobs/{job}/stop"): Route(
        "Stop a job at its next step",
        "jobs",
        _CHANGED,
        {"reason": "wrong data"},
        _object(reason={"type": "string", "maxLength": 200}),
    ),
    ("post", "/api/v1/jobs/{job}/retry"): Route(
        "Submit a job that failed or was stopped again, under its name; it goes on from its checkpoint",
        "jobs",
        _CHANGED,
    ),
    ("delete", "/api/v1/jobs/{job}"): Route("Forget a job that has ended", "jobs", {"job": "a", "deleted": True}),
    ("get", "/api/v1/jobs/{job}/events"): Route("What happened to a job, and why", "jobs", {"events": [_EVENT]}),
    ("get", "/api/v1/events"): Route(
        "What happened to nodes: those that are not well, and their recovery", "server", {"events": [], "next": None}
    ),
    ("get", "/api/v1/jobs/{job}/checkpoints"): Route(
        "Which checkpoints a job has, newest first, and which are valid, as this JobServer sees them; else `problem`",
        "jobs",
        {"job": "a", "url": None, "checkpoints": None, "total": None, "problem": "the job ...", "at": None},
    ),
    ("get", "/api/v1/stream"): Route(
        "What changes, as server-sent events until the client goes", "server", "event: change\ndata: {}\n\n"
    ),
    ("get", "/api/v1/jobs/{job}/hosts"): Route(
        "Slots of a job by address, as horovodrun's discovery wants them",
        "jobs",
        {"hosts": [{"host": "10.0.0.1", "slots": 2}]},
    ),
    ("get", "/api/v1/jobs/{job}/logs/{worker}"): Route(
        "Part of a worker's log, from byte offset on; X-EDL-Next-Offset says where to go on", "jobs", "epoch 1 ...\n"
    ),
    ("get", "/rest/1.0/get/query_pods"): Route(
        "Workers of a job in the predecessor's words", "jobs", {"job_id": "a", "pods": [], "job_stage_flag": 1}
    ),
    ("get", "/api/v1/goodput"): Route(
        "Where the time of every job went: seconds by kind, and the part that was training",
        "jobs",
        {"jobs": {"a": {"goodput": {"pending": 2.0, "train": 8.0}, "train_part": 0.8}}},
    ),
    ("get", "/api/v1/nodes"): Route(
        "All nodes with what is planned on them",
        "nodes",
        {"nodes": [{"node": "n1", "slots": 4, "draining": False, "cordoned": False, "drain": None, "workers": []}]},
    ),
    ("post", "/api/v1/nodes/{node}/drain"): Route(
        "Let all workers leave a node at a step boundary",
        "nodes",
        {"node": "n1", "draining": True, "deadline_s": 60.0, "there": True},
        {"deadline_s": 60},
        _object(deadline_s={"type": ["number", "null"], "minimum": 0}, absent=_ABSENT),
    ),
    ("post", "/api/v1/nodes/{node}/undrain"): Route(
        "Let a drained node take workers again", "nodes", {"node": "n1", "draining": False}
    ),
    ("post", "/api/v1/nodes/{node}/cordon"): Route(
        "Let a node take no new workers; those that it has stay",
        "nodes",
        {"node": "n1", "cordoned": True, "there": True},
        {"absent": False},
        _object(absent=_ABSENT),
    ),
    ("post", "/api/v1/nodes/{node}/uncordon"): Route(
        "Let a cordoned node take workers again", "nodes", {"node": "n1", "cordoned": False}
    ),
    ("get", "/api/v1/services"): Route(
        "The services, with the rates of their teachers and the demand of their students", "services", {"services": []}
    ),
    ("get", "/api/v1/services/{name}"): Route(
        "One service with its teachers and students",
        "services",
        {"service": "resnet", "teacher_records": [], "student_records": []},
    ),
    ("get", "/api/v1/health"): Route(
        "Whether all is well; with the token, what is not",
        "server",
        {"ok": True, "leader": "s1", "zookeeper": "connected", "problem_count": 0},
    ),
    ("get", "/metrics"): Route("For Prometheus", "server", "edl_job_workers 4\n"),
}


def document(generated: Json, routes: Mapping[tuple[str, str], Route] = ROUTES) -> Json:
    """`generated`, as the web framework makes it from the routes, with what it cannot know."""
    paths = {
        path: {method: _operation(operation, routes.get((method, path)), path) for method, operation in methods.items()}
        for path, methods in generated["paths"].items()
    }
    _, schemas = msgspec.json.schema_components([JobSpec], ref_template="#/components/schemas/{name}")
    spec = schemas["JobSpec"]
    for name in _HIDDEN:
        del spec["properties"][name]
    components: Json = {
        "schemas": {**generated.get("components", {}).get("schemas", {}), **schemas, "Error": _ERROR},
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "description": "derived from the cluster key"}
        },
    }
    info = {**generated["info"], "description": _ABOUT}
    tags = [{"name": name, "description": text} for name, text in _TAGS.items()]
    return {
        **generated,
        "info": info,
        "paths": paths,
        "components": components,
        "tags": tags,
        "security": [{"token": []}],
    }


_ABOUT = (
    "Every JobServer of a cluster answers every request. Each error is a sentence, with the field that is to blame "
    "where there is one. A job's ETag, sent back as If-Match, keeps a change from undoing what others changed (412)."
)
_ERROR: Json = {
    "type": "object",
    "required": ["error", "field"],
    "properties": {"error": {"type": "string"}, "field": {"type": ["string", "null"]}},
    "examples": [{"error": "np is 9: it must be between min_np 1 and max_np 4", "field": "np"}],
}


def _operation(generated: Json, route: Route | None, path: str) -> Json:
    error = {"description": "a sentence that says why not", "content": _content({"$ref": "#/components/schemas/Error"})}
    if route is None:
        return {**generated, "responses": {**generated["responses"], "default": error}}
    kept = {name: value for name, value in generated.items() if name not in ("responses", "requestBody")}
    if isinstance(route.answer, str):
        kind = "text/event-stream" if path == "/api/v1/stream" else "text/plain"
        content: Json = {kind: {"schema": {"type": "string"}, "example": route.answer}}
    else:
        content = _content({"type": "object"}, route.answer)
    responses = {str(route.status): {"description": route.summary, "content": content}, "default": error}
    found: Json = {**kept, "summary": route.summary, "tags": [route.tag], "responses": responses}
    if route.body is not None and route.schema is not None:
        required = "required" in route.schema or "minProperties" in route.schema or "$ref" in route.schema
        found["requestBody"] = {"required": required, "content": _content(route.schema, route.body)}
    if path == "/api/v1/health":
        found["security"] = [{}, {"token": []}]
    return found


def _content(schema: Json, example: Json | None = None) -> Json:
    return {"application/json": {"schema": schema, **({} if example is None else {"example": example})}}
