"""How commands reach a JobServer, and how every command ends.

Exit codes: 0 done; 1 the JobServer refused or cannot be reached; 2 bad input. An error is one line on stderr, never
a traceback. Imports neither torch nor a web framework.
"""

import functools
import json
import re
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import httpx

from edl_collective.coord.errors import CoordError
from edl_collective.coord.key_file import key_file, load_key

DEFAULT_SERVER = "http://127.0.0.1:8180"
TIMEOUT_S = 15.0
#: all but the tab and the line feed
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class CommandFailed(click.ClickException):
    """Raised when the JobServer refuses or cannot be reached."""

    exit_code = 1


class StreamLost(CommandFailed):
    """Raised when a stream ends that should go on: it may be asked for again."""


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
        #: of each request
        self.timeout_s = TIMEOUT_S

    def get(self, path: str, **query: str | int) -> Any:
        return _json(self._request("GET", path, query=query))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return _json(self._request("POST", path, body=body))

    def patch(self, path: str, body: Mapping[str, Any], if_match: str | None = None) -> Any:
        """`if_match`: the version on which the change was decided."""
        if if_match is not None and not (if_match.isascii() and if_match.isprintable()):
            raise BadInput("--if-version is not a version, such as 3-1760000000000, which `edl describe` shows")
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        return _json(self._request("PATCH", path, body=body, extra=headers))

    def delete(self, path: str) -> Any:
        return _json(self._request("DELETE", path))

    def log(self, job: str, worker: str, offset: int) -> tuple[bytes, int]:
        """Bytes of a worker's log from `offset` on, and where the next read begins."""
        answer = self._request("GET", f"/jobs/{job}/logs/{worker}", query={"offset": offset})
        return answer.content, int(answer.headers.get("x-edl-next-offset", offset + len(answer.content)))

    def stream(self, longest_s: float = TIMEOUT_S, **query: str | int) -> Iterator[tuple[str, Any]]:
        """What the JobServer tells while it changes, as (kind of message, its data).

        Raises StreamLost when it ends, or tells nothing for `longest_s` or TIMEOUT_S.
        """
        headers = {"Authorization": f"Bearer {self._token()}"}
        url = f"{self._server}/api/v1/stream"
        try:
            with (
                httpx.Client(verify=self._verifier(), trust_env=False, timeout=min(longest_s, TIMEOUT_S)) as http,
                http.stream("GET", url, params=query, headers=headers) as answer,
            ):
                if answer.status_code != 200:
                    answer.read()
                    raise CommandFailed(_sentence(answer))
                kind = ""
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data":
                        yield kind, json.loads(value)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._no_address(error) from error
        except httpx.HTTPError as error:
            text = f"the stream of the JobServer at {self._server} is lost ({error}); check --server / EDL_SERVER"
            raise StreamLost(text) from error
        raise StreamLost(f"the JobServer at {self._server} ended the stream")

    def page_address(self) -> str:
        """Of the page, with the token in the part that browsers send to nobody."""
        return f"{self._server}/#token={self._token()}"

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: object = None,
        extra: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token()}", **(extra or {})}
        url = f"{self._server}/api/v1{path}"
        try:
            # A JobServer is reached directly, never through a proxy that the environment names.
            with httpx.Client(verify=self._verifier(), trust_env=False, timeout=self.timeout_s) as http:
                answer = http.request(method, url, params=query, json=body, headers=headers)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._no_address(error) from error
        except UnicodeEncodeError as error:  # before the next, whose kind it is
            raise BadInput(f"what was given is not UTF-8: {error.object[error.start :][:20]!r}") from error
        except ValueError as error:  # of the encoder of JSON
            raise BadInput(f"what was given cannot be sent: {error}; give finite numbers") from error
        except httpx.HTTPError as error:
            why = f"{error}{_hint(error)}"
            raise CommandFailed(
                f"no JobServer answers at {self._server} ({why}); check --server / EDL_SERVER"
            ) from error
        if answer.status_code in (400, 422):
            raise BadInput(_sentence(answer))
        if not answer.is_success:
            raise CommandFailed(_sentence(answer))
        return answer

    def _no_address(self, error: Exception) -> BadInput:
        return BadInput(f"--server {self._server} (or EDL_SERVER) is not an address like {DEFAULT_SERVER}: {error}")

    def _token(self) -> str:
        given = self._given_token
        if given is not None and not (given.isascii() and given.isprintable() and " " not in given):
            raise BadInput("--token (or EDL_TOKEN) is not a token: it has 32 hexadecimal digits, see `edl token`")
        try:
            return given or load_key(self.key).api_token
        except CoordError as error:
            raise BadInput(str(error)) from error

    def _verifier(self) -> ssl.SSLContext | bool:
        """Without TLS there are no certificates to load, which takes longer than a request."""
        return self._tls() if self._server.startswith("https:") else False

    def _tls(self) -> ssl.SSLContext:
        from edl_collective.coord import tls

        try:
            return tls.client_context_of(self._ca) if self._ca else tls.client_context(load_key(self.key))
        except CoordError as error:
            raise BadInput(str(error)) from error


def _hint(error: httpx.HTTPError) -> str:
    """What to try where the two sides do not agree on TLS."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "; whom its certificate descends from is for --tls-ca / EDL_TLS_CA, or the cluster key, to say"
    if isinstance(error, httpx.RemoteProtocolError):
        return "; does it speak https?"
    return "; does it speak http?" if "WRONG_VERSION_NUMBER" in str(error) else ""


def _sentence(answer: httpx.Response) -> str:
    try:
        return plain(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}: is that a JobServer? (--server, EDL_SERVER)"


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        text = f"{answer.url} answered what is not JSON: is that a JobServer? (--server, EDL_SERVER)"
        raise CommandFailed(text) from error


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
        options = {"server": server, "key_file": key_file, "token": token, "tls_ca": tls_ca}
        command(api=api_of(options), **arguments)

    return wrapped


def api_of(options: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> Api:
    """The interface that the options of `with_api` name."""
    key = key_path(options.get("key_file"))
    api = Api(options["server"], key, options.get("token"), options.get("tls_ca"))
    api.timeout_s = timeout_s
    return api


def key_path(given: str | None) -> Path:
    """The key file; --key-file and EDL_KEY_FILE were read by click."""
    return key_file(given, {})


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def plain(value: object) -> str:
    """As text whose control characters are written out: what a job says is not to drive the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(value))


def tell(answer: object, as_json: bool, sentence: str) -> None:
    """How a command ends that changes something: in a sentence or, for programs, with the whole answer."""
    if as_json:
        print_json(answer)
    else:
        click.echo(sentence)


def print_table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """A table, at the terminal's width or, in a pipe, as wide as it needs."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else plain(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False).print(table)
