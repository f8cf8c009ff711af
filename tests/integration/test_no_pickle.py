"""Known ways into Horovod's elastic runner: its rendezvous handler and its notification service unpickle what comes.

Neither is part of an elastic job here. The attack is sent to each of our ports that take requests from the network, and
the sources are searched for whatever unpickles.
"""

import ast
import asyncio
import base64
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import KEY, Server
from api_server import Server as ApiServer

from edl_collective.driver import wire
from jobclient.node_api import NodeApi, make_app
from jobclient.rendezvous_http import RendezvousServer
from jobclient.worker_link import WorkerLink

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edl_collective", "jobclient", "jobserver", "distill", "checkpoints")
#: modules that run code on the way from bytes to values, and calls that do unless told not to
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle", "joblib"}
HOROVOD = ("horovod.runner", "horovod.torch.elastic", "horovod.common.elastic")
NOTIFICATIONS = ("horovod.common.elastic",)
#: a job of kind external runs under horovodrun, whose driver and notifications are Horovod's own (docs/security.md)
UNDER_HOROVODRUN = {
    "edl_collective/worlds.py imports horovod.common.elastic",
    "edl_collective/worlds.py imports horovod.common.elastic.notification_manager",
    # a number
    "edl_collective/horovod.py imports horovod.runner.elastic.worker",
    "edl_collective/horovod.py imports horovod.runner.elastic.worker.HostUpdateResult",
}


class Bomb:
    """What an attacker sends: unpickling it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.fixture
def proof(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "proof"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists(), "the attack itself works"
    path.unlink()
    yield path
    assert not path.exists(), "somebody unpickled what came from a wire"


def payloads(proof: Path) -> list[bytes]:
    raw = pickle.dumps(Bomb(proof))
    coded = base64.b64encode(raw)
    requests = [
        b"%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
        % (method, path, len(body), body)
        for method in (b"PUT", b"POST", b"GET")
        for path in (
            b"/worker_addresses/0",
            b"/rank_and_size/h/0",
            b"/r/j/w1/t/1:0/worker_addresses/0",
            b"/logs/j/w1",
        )
        for body in (raw, coded)
    ]
    # the notification service: a digest of 32 bytes, the length, and the message
    return [*requests, raw, coded, b"\0" * 32 + len(raw).to_bytes(4, "big") + raw]


async def send_all(port: int, data: list[bytes]) -> None:
    for part in data:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(part)
        writer.write_eof()
        try:
            async with asyncio.timeout(30):
                heard = await reader.read()
        except ConnectionError:
            heard = b""
        assert b" 200 " not in heard[:20], (part, heard)
        writer.close()


@pytest.mark.integration
async def test_the_attack_on_horovod_s_rendezvous_reaches_nobody(proof: Path, tmp_path: Path) -> None:
    rendezvous = RendezvousServer()
    api = NodeApi(make_app(tmp_path, KEY, "a"), "127.0.0.1", 0)
    serving = asyncio.get_running_loop().create_task(api.serve())

    async def driver(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await wire.accept(reader, writer, wire.driver_key(KEY, "j"), 1)
            raise AssertionError("a stranger got through the handshake")
        except wire.HandshakeError:
            writer.close()

    listener = await asyncio.start_server(driver, "127.0.0.1", 0)
    try:
        for port in (await rendezvous.start(), api.port, listener.sockets[0].getsockname()[1]):
            await send_all(port, payloads(proof))
    finally:
        listener.close()
        api.close()
        await serving
        await rendezvous.close()


@pytest.mark.integration
async def test_the_socket_of_a_node_unpickles_nothing(proof: Path) -> None:
    heard: list[object] = []
    link = WorkerLink("a", lambda *_: "token", lambda *message: heard.append(message))
    await link.start()
    try:
        for part in payloads(proof):
            reader, writer = await asyncio.open_unix_connection(link.path)
            writer.write(part + b"\n")
            writer.write_eof()
            async with asyncio.timeout(30):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.close()
    finally:
        await link.close()
    assert heard == []


def test_the_interface_unpickles_nothing(proof: Path) -> None:
    server: Server = ApiServer()
    try:
        for body in (pickle.dumps(Bomb(proof)), base64.b64encode(pickle.dumps(Bomb(proof)))):
            for path in ("/api/v1/jobs", "/api/v1/jobs/j/scale", "/api/v1/nodes/a/drain"):
                assert 400 <= server.http.post(path, content=body).status_code < 500
    finally:
        server.controller.stop()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unsafe_loads(tree: ast.AST) -> Iterator[int]:
    """Lines with torch.load that is not told weights_only=True, or numpy's allow_pickle."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if ast.unparse(node.func) == "torch.load" and arguments.get("weights_only") != "True":
            yield node.lineno
        if arguments.get("allow_pickle", "False") != "False":
            yield node.lineno


def sources() -> list[tuple[str, ast.Module]]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in found]


def test_no_module_of_ours_unpickles() -> None:
    modules = sources()
    assert len(modules) > 100
    wrong = []
    for name, tree in modules:
        names = set(imported(tree))
        wrong += [f"{name} imports {found}" for found in names if found.split(".")[0] in UNPICKLERS]
        wrong += [f"{name} imports {found}" for found in names if found.startswith(HOROVOD)]
        wrong += [f"{name}:{line} may unpickle" for line in unsafe_loads(tree)]
    assert set(wrong) == UNDER_HOROVODRUN


def test_only_the_worlds_of_horovodrun_start_horovod_s_notification_service() -> None:
    (tree,) = [tree for name, tree in sources() if name == "edl_collective/worlds.py"]
    users = {getattr(node, "name", "the module") for node in tree.body if set(imported(node)) & set(NOTIFICATIONS)}
    assert users == {"HorovodrunWorlds"}


def test_the_search_finds_what_it_searches() -> None:
    text = "from cloudpickle import loads\nimport torch\ntorch.load('f')\nnumpy.load(f, allow_pickle=True)\n"
    tree = ast.parse(text)
    assert "cloudpickle" in set(imported(tree))
    assert list(unsafe_loads(tree)) == [3, 4]


@pytest.mark.integration
def test_a_driver_and_a_job_client_do_not_even_load_horovod_s_runner() -> None:
    code = (
        "import sys, jobclient.__main__, edl_collective.driver.__main__\n"
        "print(sorted(n for n in sys.modules if n.startswith('horovod') or n == 'cloudpickle'))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout.strip() == "[]"
