"""The page: its files are for everybody, what it shows needs the token.

Invariant: only the files that were there at the start are served, by their names, so no path leads elsewhere. The
policy lets the browser run nothing but these files and talk to nobody but this server.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from fastapi import FastAPI, Request, Response

from jobserver.api_models import ApiError

FILE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Trusted Types, too: no string can become markup or code
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
PREFIX = "/page/"


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str
    tag: str


def is_page(path: str) -> bool:
    """Whether `path` is one that needs no token, because it tells nothing of the cluster."""
    return path == "/" or path.startswith(PREFIX)


def add_page(app: FastAPI) -> None:
    files = _files()

    @app.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        return _answer(files, "index.html", request)

    @app.get(PREFIX + "{name}", include_in_schema=False)
    def file(name: str, request: Request) -> Response:
        return _answer(files, name, request)


def _files() -> dict[str, _File]:
    found = {}
    for entry in resources.files("jobserver.page").iterdir():
        media_type = FILE_TYPES.get(PurePosixPath(entry.name).suffix)
        if media_type is not None:
            body = entry.read_bytes()
            found[entry.name] = _File(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return found


def _answer(files: Mapping[str, _File], name: str, request: Request) -> Response:
    found = files.get(name)
    if found is None:
        raise ApiError(404, f"the page has no file {name}")
    headers = {**HEADERS, "ETag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)
