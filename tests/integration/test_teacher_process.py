"""Teacher servers as processes: stock clients, TLS and tokens, ZooKeeper, leaving, and what a bad model ends with."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from teacher_models import ids_of, with_ids
from teachers import ROOT, TeacherFailed, TeacherProcess, started
from tls_files import write_tls_files

from distill.errors import TeacherRefused, TeacherUnavailable
from distill.records import TeacherRecord
from distill.teacher_client import TeacherClient
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import decode
from edl_collective.coord.zk_store import ZkStore

pytestmark = pytest.mark.integration

TOKEN = "a token for tests"
IMAGES = with_ids(np.zeros((6, 3, 8, 8), np.uint8), [1, 70000, 3, 4, 5, 6])
IDS = [1, 70000, 3, 4, 5, 6]
MANY = np.zeros((640, 3, 8, 8), np.uint8)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def teachers(tls: tuple[Path, Path, Path]) -> Iterator[tuple[TeacherProcess, ...]]:
    """One that is open to all, and one with TLS and a token."""
    guarded = ("--tls-cert", str(tls[0]), "--tls-key", str(tls[1]))
    with started(
        TeacherProcess(), TeacherProcess("teacher_models:identity", *guarded, env={"EDL_TEACHER_TOKEN": TOKEN})
    ) as found:
        yield found


def test_the_stock_client_of_triton_is_served(teachers: tuple[TeacherProcess, ...]) -> None:
    teacher = teachers[0]
    with contextlib.closing(tritonclient.http.InferenceServerClient(teacher.url.removeprefix("http://"))) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(teacher.model)
        assert client.is_model_ready(teacher.model, "1")
        assert client.get_server_metadata()["name"] == "edl-teacher"
        assert client.get_model_metadata(teacher.model)["inputs"][0]["shape"] == [-1, 3, 8, 8]
        for binary in (True, False):
            image = tritonclient.http.InferInput("image", list(IMAGES.shape), "UINT8")
            image.set_data_from_numpy(IMAGES, binary_data=binary)
            wanted = tritonclient.http.InferRequestedOutput("output", binary_data=binary)
            result = client.infer(teacher.model, [image], outputs=[wanted], request_id="seven")
            assert ids_of(result.as_numpy("output")) == IDS
            assert result.get_response()["id"] == "seven"
            assert result.get_response()["parameters"]["model_hash"] == teacher.model_hash
        assert ids_of(client.infer(teacher.model, [image]).as_numpy("output")) == IDS
        [statistics] = client.get_inference_statistics(teacher.model)["model_stats"]
        assert statistics["inference_count"] == 3 * len(IDS)
        with pytest.raises(tritonclient.http.InferenceServerException, match="there is no model 'other'"):
            client.get_model_metadata("other")


def test_tls_and_token_keep_strangers_out(teachers: tuple[TeacherProcess, ...], tls: tuple[Path, Path, Path]) -> None:
    teacher = teachers[1]
    certificate, _, stranger = tls
    assert teacher.url.startswith("https://")
    with TeacherClient(teacher.url, token=TOKEN, ca_file=certificate) as client:
        large = with_ids(np.zeros((5000, 3, 8, 8), np.uint8), range(5000))  # many records of TLS
        for _ in range(3):
            assert ids_of(client.infer(teacher.model, {"image": large})[0]["output"]) == list(range(5000))
    for token in (None, "wrong"):
        with TeacherClient(teacher.url, token=token, ca_file=certificate) as client:
            assert client.ready()
            with pytest.raises(TeacherRefused, match=r"answered 401: .*token"):
                client.infer(teacher.model, {"image": IMAGES})
    for ca_file in (None, stranger):
        with (
            TeacherClient(teacher.url, token=TOKEN, ca_file=ca_file) as client,
            pytest.raises(TeacherRefused, match=r"certificate of teacher .* is not trusted"),
        ):
            client.metadata(teacher.model)
    with (
        TeacherClient(teacher.url.replace("https", "http")) as client,
        pytest.raises((TeacherUnavailable, TeacherRefused)),
    ):
        client.metadata(teacher.model)
    with TeacherClient(teacher.url, token=TOKEN, ca_file=certificate) as client:
        assert client.ready()


def wait_until(true: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def listed(store: ZkStore, service: str) -> dict[str, TeacherRecord]:
    paths = Paths()
    found = {name: store.get(paths.teacher(service, name)) for name in store.children(paths.teachers(service))}
    return {name: decode(entry.data, TeacherRecord) for name, entry in found.items() if entry is not None}


def test_a_teacher_is_listed_while_it_serves(zookeeper: str) -> None:
    store = ZkStore(zookeeper).start()
    place = ("--zookeeper", zookeeper, "--service", "one", "--session-timeout", "4")
    try:
        with started(
            TeacherProcess("teacher_models:identity", *place, "--teacher-id", "a", delay_s=0.2),
            TeacherProcess("teacher_models:identity", *place, env={"EDL_JOB": "teach", "EDL_WORKER": "b"}),
        ) as (a, b):
            wait_until(lambda: len(listed(store, "one")) == 2)
            found = listed(store, "one")
            assert (found["a"].url, found["a"].model_hash, found["a"].classes) == (a.url, a.model_hash, 10)
            assert (found["b"].job, found["b"].worker, found["b"].draining) == ("teach", "b", False)
            rate = found["a"].rate
            assert rate is not None
            assert 64 <= rate <= 64 / 0.2 + 1, "of batches that take 0.2 s where nothing else is done"
            with TeacherClient(a.url) as client, TeacherClient(a.url) as other, ThreadPoolExecutor() as threads:
                client.infer(a.model, {"image": IMAGES})
                wait_until(lambda: (listed(store, "one")["a"].latency_p50_s or 0) >= 0.2)
                much = threads.submit(other.infer, a.model, {"image": MANY})  # seconds of work, in which it is there
                a.leave()
                late = threads.submit(client.infer, a.model, {"image": IMAGES})  # nobody told us to go
                wait_until(lambda: listed(store, "one").get("a", found["a"]).draining)
                assert ids_of(late.result()[0]["output"]) == IDS
                assert len(much.result()[0]["output"]) == len(MANY)
            assert a.wait() == 0, a.log
            assert "a" not in listed(store, "one")
            b.kill()
            wait_until(lambda: not listed(store, "one"))  # with its session
    finally:
        store.close()


def test_a_foreign_server_is_listed_by_edl_teacher_register(
    zookeeper: str, teachers: tuple[TeacherProcess, ...]
) -> None:
    store = ZkStore(zookeeper).start()
    command = [sys.executable, "-m", "jobserver.cli.main", "teacher", "register"]
    try:
        with TeacherProcess() as foreign:
            options = [
                foreign.url,
                "two",
                "--zookeeper",
                zookeeper,
                "--teacher-id",
                "t",
                "--every",
                "0.1",
                "--timeout",
                "0.5",
            ]
            process = subprocess.Popen(
                [*command, *options], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            try:
                wait_until(lambda: listed(store, "two"))
                assert listed(store, "two")["t"].model_hash == foreign.model_hash
                foreign.freeze()
                wait_until(lambda: not listed(store, "two"))
                foreign.thaw()
                wait_until(lambda: listed(store, "two"))
                process.send_signal(signal.SIGTERM)
                assert process.wait(60.0) == 0
                assert not listed(store, "two")
            finally:
                process.kill()
                process.wait()
    finally:
        store.close()


def test_edl_teacher_register_refuses_what_does_not_answer(zookeeper: str) -> None:
    command = [sys.executable, "-m", "jobserver.cli.main", "teacher", "register"]
    ended = subprocess.run([*command, "127.0.0.1:1", "s", "--model", "m", "--zookeeper", zookeeper], cwd=ROOT,
                           capture_output=True, text=True)  # fmt: skip
    assert (ended.returncode, ended.stderr.splitlines()[-1].startswith("Error: teacher http://127.0.0.1:1")) == (
        1,
        True,
    )
    ended = subprocess.run(
        [*command, "nowhere", "s", "--zookeeper", zookeeper], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, "must be host:port" in ended.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "x.pt2"), "x.pt2 cannot be read"),
        (("--model", "teacher_models:identity", "--input", "image:uint8"), "--input 'image:uint8' must look like"),
        (("--model", "teacher_models:summed", "--input", "image:uint8:3"), "its first size must be"),
    ],
)
def test_what_cannot_be_served_ends_with_one_line_and_2(options: tuple[str, ...], words: str) -> None:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run([sys.executable, "-m", "jobserver.cli.main", "teacher", "serve", "--port", "0", *options],
                           cwd=ROOT, env=environment, capture_output=True, text=True)  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr


def test_a_port_that_is_taken_is_named(teachers: tuple[TeacherProcess, ...]) -> None:
    port = int(teachers[0].url.rpartition(":")[2])
    with pytest.raises(TeacherFailed, match="Address already in use"), TeacherProcess(port=port):
        raise AssertionError
