"""What surrounds the agent: the socket of the workers, the logs over HTTP, and the program on a real ZooKeeper."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from agent_cluster import KEY, node, until, wait_for
from msgspec.structs import replace

from edl_collective.coord.key_file import load_or_create_key
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    JobSpec,
    NodeRecord,
    decode,
    encode,
)
from edl_collective.coord.zk_store import ZkStore
from edl_collective.messages import (
    Finished,
    Gate,
    Leave,
    WorkerHello,
    WorkerMessage,
    decode_agent_line,
    encode_line,
)
from jobclient import node_api
from jobclient.node_api import NodeApi, make_app
from jobclient.worker_link import MAX_LINE_BYTES, WorkerLink

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


async def test_link_speaks_only_for_proven_workers_and_the_newest_connection() -> None:
    heard: list[WorkerMessage] = []
    link = WorkerLink("a", lambda _, worker: "t" if worker == "w1" else None, lambda _j, _w, m: heard.append(m))
    await link.start()
    hello = WorkerHello(job="j", worker="w1", token="t", pid=1)

    async def connect(*lines: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(link.path)
        writer.writelines(lines)
        return reader, writer

    refused = (
        encode_line(replace(hello, token="other")),
        encode_line(replace(hello, worker="w2")),
        encode_line(Gate(last_generation=0)),
        b"not json\n",
        b"",
        b"x" * (MAX_LINE_BYTES + 1),
    )
    for line in refused:
        reader, writer = await connect(line)
        if not line:
            writer.write_eof()
        with contextlib.suppress(ConnectionError):  # what was not read makes it a reset
            assert await reader.read() == b""
        writer.close()
    assert heard == []
    assert not link.send("j", "w1", Leave())

    first, first_writer = await connect(encode_line(hello))
    await until(lambda: len(heard) == 1)
    second, second_writer = await connect(encode_line(hello), encode_line(Gate(last_generation=3)))
    await until(lambda: Gate(last_generation=3) in heard)
    assert await first.read() == b""
    assert link.send("j", "w1", Leave(reason="r"))
    assert decode_agent_line(await second.readline()) == Leave(reason="r")

    second_writer.write(encode_line(Finished(generation=3)))
    second_writer.close()
    await link.drained("j", "w1")
    assert heard[-1] == Finished(generation=3)
    assert not link.send("j", "w1", Leave())
    first_writer.close()
    await link.close()
    assert not link.path.exists()


async def test_a_connection_that_came_just_before_the_end_is_closed_too() -> None:
    link = WorkerLink("a", lambda *_: "t", lambda *_: None)
    await link.start()
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        link._accept(reader, writer)
        await link.close()  # before the task of the connection has taken its first step
        assert writer.is_closing()
        await writer.wait_closed()


async def test_logs_over_http(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "w1.log").write_bytes(b"0123456789")
    (tmp_path / "secret.log").write_text("no")
    api = NodeApi(make_app(tmp_path, KEY, "a"), "127.0.0.1", 0)
    serving = asyncio.get_running_loop().create_task(api.serve())
    headers = {"Authorization": f"Bearer {KEY.api_token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", headers=headers) as client:
        assert (await client.get("/health")).json() == {"node": "a", "ok": True}
        part = await client.get("/logs/j/w1", params={"offset": 3, "limit": 4})
        assert (part.content, part.headers["X-EDL-Next-Offset"]) == (b"3456", "7")
        end = await client.get("/logs/j/w1", params={"offset": 10})
        assert (end.status_code, end.content, end.headers["X-EDL-Next-Offset"]) == (200, b"", "10")
        assert (await client.get("/logs/j/w1", headers={"Authorization": "Bearer x"})).status_code == 401
        assert (await client.get("/logs/j/w2")).status_code == 404
        for path in ("/logs/../secret", "/logs/%2e%2e/secret", "/logs/j/..%2f..%2fsecret", "/logs/j/%2e%2e"):
            assert (await client.get(path)).status_code in (400, 404)
        for query in ("offset=-1", "offset=x", "limit=1e3"):
            answer = await client.get(f"/logs/j/w1?{query}")
            assert answer.status_code == 400
            assert query.partition("=")[0] in answer.json()["error"]
    api.close()
    await serving


async def test_log_on_a_slow_disk_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, may_read = threading.Event(), threading.Event()

    def slow(_path: Path, _offset: int, _limit: int) -> bytes:
        reads.set()
        assert may_read.wait(60)
        return b"at last"

    monkeypatch.setattr(node_api, "_read", slow)
    app = make_app(tmp_path, KEY, "a")
    headers = {"Authorization": f"Bearer {KEY.api_token}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a", headers=headers) as client:
        log = asyncio.get_running_loop().create_task(client.get("/logs/j/w1"))
        await until(reads.is_set)
        assert (await client.get("/health")).status_code == 200
        assert not log.done()
        may_read.set()
        assert (await log).content == b"at last"


# ---- the program itself, on a real ZooKeeper ----------------------------------------------------------------------


def start_client(tmp_path: Path, *argv: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "EDL_KEY_FILE": str(tmp_path / "key"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jobclient", "--log-dir", str(tmp_path / "logs"), *argv]
    return subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True)


def test_jobclient_submits_its_job_registers_and_signs_off(tmp_path: Path, zookeeper: str) -> None:
    paths = Paths("/test-jobclient")
    store = ZkStore(zookeeper).start()
    options = ("--zookeeper", zookeeper, "--zookeeper-root", paths.root, "--node", "a", "--slots", "3")
    client = start_client(tmp_path, *options, "--job_id", "mine", "train.py", "--epochs", "3")
    try:
        wait_for(lambda: store.get(paths.node("a")) is not None)
        spec, found = store.get(paths.spec("mine")), store.get(paths.node("a"))
        assert spec is not None
        assert found is not None
        assert decode(spec.data, JobSpec).command == ("python3", "train.py", "--epochs", "3")
        record = decode(found.data, NodeRecord)
        assert record.slots == 3
        assert httpx.get(f"http://127.0.0.1:{record.port}/health").json() == {"node": "a", "ok": True}
        client.send_signal(signal.SIGTERM)
        _, said = client.communicate(timeout=60)
        assert client.returncode == 0, said
        assert "Traceback" not in said
        assert store.get(paths.node("a")) is None
    finally:
        client.kill()
        client.communicate()
        store.close()


def test_signal_ends_a_jobclient_whose_name_is_taken(tmp_path: Path, zookeeper: str) -> None:
    paths = Paths("/test-taken")
    store = ZkStore(zookeeper).start()
    store.create(paths.node("a"), encode(node("life-0")), ephemeral=True)
    client = start_client(tmp_path, "--zookeeper", zookeeper, "--zookeeper-root", paths.root, "--node", "a")
    try:
        assert client.stderr is not None
        said = ""
        while "held by another session" not in said:
            said = client.stderr.readline()
            assert said, "the JobClient ended"
        client.send_signal(signal.SIGTERM)
        _, said = client.communicate(timeout=60)
        assert (client.returncode, "Traceback" in said) == (0, False), said
    finally:
        client.kill()
        client.communicate()
        store.close()


def test_signal_during_the_health_check_ends_a_jobclient_that_writes_its_own_log(
    tmp_path: Path, zookeeper: str
) -> None:
    paths, log = Paths("/test-health"), tmp_path / "own" / "jobclient.log"
    store = ZkStore(zookeeper).start()
    options = ("--zookeeper", zookeeper, "--zookeeper-root", paths.root, "--node", "a", "--gpus", "none")
    client = start_client(tmp_path, *options, "--health-check", "on", "--log-file", str(log))
    try:
        wait_for(lambda: log.exists() and "health check of the CPU" in log.read_text(), 60.0)
        client.send_signal(signal.SIGTERM)
        _, said = client.communicate(timeout=60)
        assert (client.returncode, said) == (0, "")
        assert "CPU slots" in log.read_text()
        assert "before the node was registered" in log.read_text()
        assert store.get(paths.node("a")) is None
    finally:
        client.kill()
        client.communicate()
        store.close()


@pytest.mark.parametrize(
    ("argv", "knob"),
    [
        (("--zookeeper", "127.0.0.1:1", "--zookeeper-wait", "0.5"), "--zookeeper / EDL_ZOOKEEPER"),
        (("--port", "1", "--address", "192.0.2.1"), "--address 192.0.2.1 --port 1"),
        (("--slots", "many"), "--slots is 'many'"),
    ],
)
def test_what_the_user_can_put_right_is_one_sentence(tmp_path: Path, argv: tuple[str, ...], knob: str) -> None:
    load_or_create_key(tmp_path / "key")
    client = start_client(tmp_path, *argv)
    _, said = client.communicate(timeout=60)
    assert client.returncode == 2
    assert knob in said
    assert len(said.strip().splitlines()) == 1, said
