"""TLS by the cluster key: who has it is believed, everybody else is not; the CLI, the log fetch, slow clients."""

import asyncio
import contextlib
import datetime
import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from agent_cluster import until
from api_server import KEY, SUBMIT, P, Server, refused
from click.testing import CliRunner, Result
from tls_files import write_tls_files

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import NodeRecord, WorkerRecord, WorkerState
from edl_collective.coord.tls import (
    TlsError,
    client_context,
    client_context_of,
    ends_at,
    server_context,
    server_context_of,
)
from jobclient import http_limits
from jobclient.node_api import NodeApi, make_app
from jobserver.__main__ import _tell_of_end
from jobserver.cli.main import edl

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
OTHER = ClusterKey(b"s" * 32)


class Node:
    """A JobClient's endpoint on a thread of its own."""

    def __init__(self, log_dir: Path, context: ssl.SSLContext | None) -> None:
        (log_dir / "j").mkdir()
        (log_dir / "j" / "w1.log").write_text("over the wire\n")
        self.api = NodeApi(make_app(log_dir, KEY, "a"), "127.0.0.1", 0, context)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.api.serve()))

    def __enter__(self) -> "Node":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()
        self._thread.join()


def register(server: Server, port: int, *, tls: bool) -> None:
    server.put(P.node("a"), NodeRecord(node="a", incarnation="i", address="127.0.0.1", port=port, slots=1, tls=tls))
    server.http.post("/api/v1/jobs", json=SUBMIT)
    record = WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    server.put(P.worker("j", "w1"), record)


def test_logs_are_fetched_over_tls_and_only_from_who_has_the_key(server: Server, tmp_path: Path) -> None:
    with Node(tmp_path, server_context(KEY, ["a"])) as node:
        register(server, node.api.port, tls=True)
        answer = server.http.get("/api/v1/jobs/j/logs/w1")
        assert (answer.status_code, answer.text) == (200, "over the wire\n")
        register(server, node.api.port, tls=False)
        refused(server.http.get("/api/v1/jobs/j/logs/w1"), 502, "does not answer")


@pytest.mark.parametrize("whose", ["another key", "a certificate of its own", "none"])
def test_a_forged_node_over_tls_is_not_believed(server: Server, tmp_path: Path, whose: str) -> None:
    certificate, key, _ = write_tls_files(tmp_path)
    context: ssl.SSLContext | None = None
    if whose == "another key":
        context = server_context(OTHER, ["a"])
    elif whose == "a certificate of its own":
        context = server_context_of(certificate, key)
    (tmp_path / "logs").mkdir()
    with Node(tmp_path / "logs", context) as node:
        register(server, node.api.port, tls=True)
        refused(server.http.get("/api/v1/jobs/j/logs/w1"), 502, "does not answer")


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    certificate, key, stranger = write_tls_files(tmp_path)
    for wrong in ((tmp_path / "none", None), (key, None), (stranger, key), (certificate, None)):
        with pytest.raises(TlsError, match="--tls-cert"):
            server_context_of(*wrong)
    with pytest.raises(TlsError, match="EDL_TLS_CA"):
        client_context_of(str(tmp_path / "none"))
    assert client_context_of(str(certificate)).check_hostname
    assert client_context_of("system").check_hostname


def test_the_end_of_a_certificate_is_told_before_clients_refuse_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key, _ = write_tls_files(tmp_path)
    end_s = ends_at(certificate)
    assert datetime.datetime.fromtimestamp(end_s, datetime.UTC).isoformat() == "2126-10-28T16:02:00+00:00"
    with pytest.raises(TlsError, match="--tls-cert"):
        ends_at(key)
    for left_s, told in ((1e9, ""), (3 * 86400.0, "expires in 3.0 days"), (-1.0, "has expired: clients refuse it")):
        caplog.clear()
        _tell_of_end(certificate, left_s)
        assert bool(caplog.text) == bool(told)
        assert told in caplog.text


# ---- the program --------------------------------------------------------------------------------------------------


def ask(url: str, folder: Path, *arguments: str, **environ: str) -> Result:
    variables = {"EDL_SERVER": url, "EDL_KEY_FILE": str(folder / "key"), "HOME": str(folder), **environ}
    return CliRunner().invoke(edl, list(arguments), env=variables)


def test_the_command_line_over_tls(zookeeper: str, tmp_path: Path) -> None:
    certificate, _, _ = write_tls_files(tmp_path)
    environ = {**os.environ, "EDL_KEY_FILE": str(tmp_path / "key"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jobserver", "--zookeeper", zookeeper, "--zookeeper-root", "/tls"]
    command += ["--zookeeper-acl", "key", "--server-port", "0", "--tls", "on"]
    server = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if " serves " in line)
        url = line.split(" serves ")[1].strip()
        assert url.startswith("https://127.0.0.1:")
        assert ask(url, tmp_path, "ps").exit_code == 0
        stranger = ask(url, tmp_path, "ps", EDL_TLS_CA=str(certificate))
        assert (stranger.exit_code, "certificate verify failed" in stranger.output) == (1, True)
        plain = ask(url.replace("https", "http"), tmp_path, "ps")
        assert plain.exit_code == 1

        # who has no key: a token, and the authority
        authority, token = ask(url, tmp_path, "certificate").output, ask(url, tmp_path, "token", "--read-only").output
        (tmp_path / "ca.pem").write_text(authority)
        (tmp_path / "elsewhere").mkdir()
        given = {"EDL_TOKEN": token.strip(), "EDL_TLS_CA": str(tmp_path / "ca.pem")}
        environ = {"EDL_KEY_FILE": str(tmp_path / "elsewhere" / "none")}
        assert ask(url, tmp_path, "ps", **given, **environ).exit_code == 0
        change = ask(url, tmp_path, "stop", "j", **given, **environ)
        assert (change.exit_code, "read-only" in change.output) == (1, True), change.output
        hosts = [sys.executable, "-m", "jobserver.cli.discover"]
        variables = {**os.environ, **environ, **given, "EDL_SERVER": url, "EDL_JOB": "j", "PYTHONPATH": str(ROOT)}
        answer = subprocess.run(hosts, env=variables, capture_output=True, text=True, timeout=60, check=False)
        assert (answer.returncode, "there is no job j" in answer.stderr) == (1, True), answer.stderr
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0


# ---- limits -------------------------------------------------------------------------------------------------------


async def test_a_client_that_sends_no_request_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "HEAD_TIMEOUT_S", 0.3)
    api = NodeApi(make_app(tmp_path, KEY, "a"), "127.0.0.1", 0)
    serving = asyncio.get_running_loop().create_task(api.serve())
    for said in (b"", b"GET /health HTTP/1.1\r\nX: ", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /h"):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(said)
        async with asyncio.timeout(30):
            heard = b""
            with contextlib.suppress(ConnectionResetError):
                heard = await reader.read()
        assert (b"200 OK" in heard) == said.endswith(b"GET /h")
        writer.close()
    api.close()
    await serving


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"GET /", b"a"),
        (b"GET /health HTTP/1.1\r\nX: ", b"a"),
        (b"GET /health HTTP/1.1\r\n", b"X: a\r\n"),
        (b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n"),
        (b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
        (b"GET /health HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", b"a"),
    ],
)
async def test_a_head_without_an_end_costs_no_memory(tmp_path: Path, start: bytes, endless: bytes) -> None:
    api = NodeApi(make_app(tmp_path, KEY, "a"), "127.0.0.1", 0)
    serving = asyncio.get_running_loop().create_task(api.serve())
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(start)
    part = endless * (65536 // len(endless))
    async with asyncio.timeout(30):
        with pytest.raises(ConnectionError):
            await pour(writer, part, 512)  # 32 MiB, more than the kernel keeps
    writer.close()
    api.close()
    await serving


async def pour(writer: asyncio.StreamWriter, part: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(part)
        await writer.drain()


async def test_a_large_body_is_no_large_head(tmp_path: Path) -> None:
    api = NodeApi(make_app(tmp_path, KEY, "a"), "127.0.0.1", 0)
    serving = asyncio.get_running_loop().create_task(api.serve())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", timeout=30) as client:
        for _ in range(3):  # on one connection
            assert (await client.post("/health", content=b"a" * 300_000)).status_code == 405
    api.close()
    await serving


async def test_nobody_holds_all_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "MAX_CONNECTIONS", 3)
    api = NodeApi(make_app(tmp_path, KEY, "a"), "127.0.0.1", 0)
    serving = asyncio.get_running_loop().create_task(api.serve())
    held = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(6)]
    ended = [asyncio.ensure_future(reader.read()) for reader, _ in held]
    await until(lambda: sum(reading.done() for reading in ended) == 3, timeout_s=30)
    for _, writer in held:
        writer.close()
    await asyncio.gather(*ended, return_exceptions=True)

    def answers() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)
        try:
            connection.request("GET", "/health")
            return bool(json.load(connection.getresponse())["ok"])
        except (OSError, http.client.HTTPException):
            return False  # those that left are not noticed yet
        finally:
            connection.close()

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(answers):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    api.close()
    await serving


def test_contexts_are_of_their_key() -> None:
    assert client_context(KEY) is client_context(ClusterKey(b"k" * 32))
    assert client_context(KEY) is not client_context(OTHER)
