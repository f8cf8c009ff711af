"""How commands reach a JobServer, and how every command ends.

Exit codes: 0 done; 1 the JobServer refused or cannot be reached; 2 bad input. An error is one line on stderr, never
a traceback. Imports neither torch nor a web framework.
"""

import functools
import json
import ssl
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import httpx

from edl_collective.coord.errors import CoordError
from edl_collective.coord.key_file import key_file, load_key

DEFAULT_SERVER = "http://127.0.0.1:8180"
TIMEOUT_S = 15.0


class CommandFailed(click.ClickException):
    """Raised when the JobServer refuses or cannot be reached."""

    exit_code = 1


class BadInput(click.ClickException):
    """Raised when what the user gave cannot work."""

    exit_code = 2


class Api:
    """The JobServer's HTTP interface."""

    def __init__(self, server: str, key: Path, token: str | None = None, ca: str | None = None) -> None:
        """key: file of the cluster key, not needed with a token and, where the server speaks TLS, `ca`: a PEM file."""
        self._server = server.rstrip("/")
        self.key = key
        self._given_token = token
        self._ca = ca

    def get(self, path: str, **query: str | int) -> Any:
        return self._request("GET", path, query=query).json()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._request("POST", path, body=body).json()

    def delete(self, path: str) -> Any:
        return self._request("DELETE", path).json()

    def log(self, job: str, worker: str, offset: int) -> tuple[bytes, int]:
        """Bytes of a worker's log from `offset` on, and where the next read begins."""
        answer = self._request("GET", f"/jobs/{job}/logs/{worker}", query={"offset": offset})
        return answer.content, int(answer.headers.get("x-edl-next-offset", offset + len(answer.content)))

    def _request(
        self, method: str, path: str, *, query: Mapping[str, str | int] | None = None, body: object = None
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token()}"}
        url = f"{self._server}/api/v1{path}"
        # Without TLS there are no certificates to load, which takes longer than the request; a JobServer is reached
        # directly, never through a proxy that the environment names.
        tls = self._tls() if url.startswith("https:") else False
        try:
            with httpx.Client(verify=tls, trust_env=False, timeout=TIMEOUT_S) as http:
                answer = http.request(method, url, params=query, json=body, headers=headers)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise BadInput(f"--server {self._server} is not an address: {error}") from error
        except httpx.HTTPError as error:
            text = f"no JobServer answers at {self._server} ({error}); check --server / EDL_SERVER"
            raise CommandFailed(text) from error
        if answer.status_code in (400, 422):
            raise BadInput(_sentence(answer))
        if answer.status_code >= 400:
            raise CommandFailed(_sentence(answer))
        return answer

    def _token(self) -> str:
        try:
            return self._given_token or load_key(self.key).api_token
        except CoordError as error:
            raise BadInput(str(error)) from error

    def _tls(self) -> ssl.SSLContext:
        from edl_collective.coord import tls

        try:
            return tls.client_context_of(self._ca) if self._ca else tls.client_context(load_key(self.key))
        except CoordError as error:
            raise BadInput(str(error)) from error


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}: is that a JobServer?"


def with_api(command: Callable[..., None]) -> Callable[..., None]:
    """Add --server, --key-file and --json, and pass `api` and `as_json` to the command."""

    @click.option("--server", envvar="EDL_SERVER", default=DEFAULT_SERVER, show_default=True, help="URL of a JobServer")
    @click.option("--key-file", envvar="EDL_KEY_FILE", default=None, help="the cluster key (default: ~/.edl/key)")
    @click.option("--token", envvar="EDL_TOKEN", default=None, help="instead of the key, from `edl token --read-only`")
    @click.option(
        "--tls-ca",
        envvar="EDL_TLS_CA",
        default=None,
        metavar="FILE",
        help="whom an https server descends from: a PEM file, or 'system' (default: whoever has the cluster key)",
    )
    @click.option("--json", "as_json", is_flag=True, help="print JSON")
    @functools.wraps(command)
    def wrapped(*, server: str, key_file: str | None, token: str | None, tls_ca: str | None, **arguments: Any) -> None:
        command(api=Api(server, key_path(key_file), token, tls_ca), **arguments)

    return wrapped


def key_path(given: str | None) -> Path:
    """The key file; --key-file and EDL_KEY_FILE were read by click."""
    return key_file(given, {})


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def print_table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """A table, at the terminal's width or, in a pipe, as wide as it needs."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False).print(table)
