"""The reference of the HTTP interface, from the document that every JobServer serves at /api/v1/openapi.json."""

import json
from collections.abc import Iterator
from typing import Any

from docsite.markup import cell, code, fence, table
from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import ManualClock
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.signing import SpecSigner
from jobserver.api import Service, create_app
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig

Json = dict[str, Any]
_METHODS = ("get", "post", "put", "patch", "delete")


def document() -> Json:
    """The document of a JobServer that has no cluster."""
    store, paths, clock, key = MemoryStore(), Paths(), ManualClock(0.0), ClusterKey(bytes(32))
    leadership = Leadership(store, paths, "server", "http://127.0.0.1")
    controller = Controller(store, paths, leadership, clock, ReconcileConfig(), SpecSigner(key))
    try:
        found: Json = create_app(Service(store, paths, controller, clock, key, None)).openapi()
    finally:
        controller.stop()
    return found


def http_reference() -> str:
    """A section for each tag, in it one for each route."""
    doc = document()
    parts = []
    for tag in doc["tags"]:
        parts += [f"## {tag['name'].capitalize()}", cell(tag["description"])]
        parts += [_route(method, path, route) for method, path, route in _routes(doc) if tag["name"] in route["tags"]]
    return "\n\n".join(parts)


def _routes(doc: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in doc["paths"].items():
        yield from ((method, path, methods[method]) for method in _METHODS if method in methods)


def _route(method: str, path: str, route: Json) -> str:
    parts = [f"### {method.upper()} {path}", f"{cell(route['summary'])}."]
    if route.get("description"):
        parts.append(cell(route["description"]))
    if rows := [_parameter(parameter) for parameter in route.get("parameters", ())]:
        parts.append(table(["parameter", "in", ""], rows))
    if "requestBody" in route:
        parts.append("Body, for example:\n\n" + _example(route["requestBody"]["content"]))
    for status, answer in route["responses"].items():
        if status != "default" and answer.get("content"):
            parts.append(f"Answers {status}, for example:\n\n{_example(answer['content'])}")
    return "\n\n".join(parts)


def _parameter(parameter: Json) -> tuple[str, str, str]:
    schema = parameter.get("schema", {})
    text = parameter.get("description") or schema.get("description") or ""
    if "default" in schema:
        text += f" (default: {schema['default']})"
    return code(parameter["name"]), parameter["in"], cell(text)


def _example(content: Json) -> str:
    kind, body = next(iter(content.items()))
    example = body.get("example", "")
    if kind == "application/json":
        return fence("json", json.dumps(example, indent=2))
    return fence("text", str(example).rstrip())
