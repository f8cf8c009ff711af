"""GET /api/v1/openapi.json: what the framework knows of the routes, with what it cannot know (jobserver.openapi)."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from jobserver import __version__
from jobserver.openapi import document


def describe_itself(app: FastAPI) -> None:
    """Made when it is first asked for, when all routes are there."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            generated = get_openapi(title=app.title, version=__version__, routes=app.routes)
            app.openapi_schema = document(generated)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
