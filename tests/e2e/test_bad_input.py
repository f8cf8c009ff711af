"""Bad input gets one clear sentence and loses nothing: through the command line and HTTP, against real processes.

All tests share one cluster: a ZooKeeper, a JobServer, and node "a" with two slots. Each ends the jobs that it submits.
"""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from cluster import TINY_JOB, Cluster

from edl_collective.coord.paths import Paths
from edl_collective.coord.zk_store import ZkStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PATHS = Paths("/edl")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        cluster.add_node("a", slots=2)
        yield cluster
    finally:
        cluster.close()


def run(cluster: Cluster, *arguments: str, module: str = "jobserver.cli.main") -> Done:
    """`edl ARGUMENTS`, or another module of ours, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=cluster.environ, cwd=cluster.base, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def refused(done: Done, status: int, sentence: str) -> None:
    """One line on stderr that holds `sentence`, and the exit status."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr


def submit(cluster: Cluster, job: str, *arguments: str) -> None:
    done = run(cluster, "submit", "--name", job, *arguments)
    assert (done.returncode, done.stdout) == (0, f"job {job} is submitted\n"), done.stderr


def describe(cluster: Cluster, job: str) -> str:
    done = run(cluster, "describe", job)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- refused at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ("submit --min-np 3 --max-np 2 -- sleep 1", 2, "min_np is 3 and max_np is 2: min_np must not exceed max_np"),
        ("submit --np 0 -- sleep 1", 2, "np is 0: it must be between min_np 1 and max_np 1"),
        ("submit --min-np 0 -- sleep 1", 2, "min_np is 0: it must be at least 1"),
        ("describe nosuch", 1, "there is no job nosuch"),
        ("scale nosuch 2", 1, "there is no job nosuch"),
        ("stop nosuch", 1, "there is no job nosuch"),
        ("logs nosuch", 1, "there is no job nosuch"),
        ("events nosuch", 1, "there is no job nosuch"),
    ],
)
def test_what_cannot_be_is_refused(cluster: Cluster, arguments: str, status: int, sentence: str) -> None:
    refused(run(cluster, *arguments.split()), status, sentence)
    assert cluster.get("/jobs")["jobs"] == [], "nothing was stored"


def test_a_missing_command(cluster: Cluster) -> None:
    refused(run(cluster, "submit", "--np", "1"), 2, "the command is missing: edl submit [OPTIONS] -- python train.py")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ('{"job": "j", "command"', 400, "the body is not JSON"),
        ('["j"]', 400, "the body must be a JSON object"),
        ('{"job": "j", "command": "sleep 1"}', 422, "command: expected `array`, got `str`"),
        ('{"job": "j", "command": ["x"], "workers": 3}', 422, "a job has no field 'workers'"),
        ('{"job": "../j", "command": ["x"]}', 422, "cannot name a job"),
    ],
)
def test_malformed_json(cluster: Cluster, body: str, status: int, sentence: str) -> None:
    answer = cluster.api.post("/api/v1/jobs", content=body)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]
    assert cluster.get("/jobs")["jobs"] == []


def test_a_duplicate_with_another_spec(cluster: Cluster) -> None:
    submit(cluster, "twice", "--", "sleep", "60")
    again = run(cluster, "submit", "--name", "twice", "--", "sleep", "60")
    assert (again.returncode, again.stdout) == (0, "job twice exists already\n")
    other = run(cluster, "submit", "--name", "twice", "--", "sleep", "61")
    refused(other, 1, "job twice exists already with a different command")
    assert cluster.job("twice")["spec"]["command"] == ["sleep", "60"]
    end(cluster, "twice")


def end(cluster: Cluster, job: str) -> None:
    assert run(cluster, "stop", job).returncode == 0
    cluster.wait_for_phase(job, "stopped", 30)
    assert run(cluster, "delete", job).returncode == 0


# ---- jobs that cannot run ------------------------------------------------------------------------------------------


def test_too_few_slots(cluster: Cluster) -> None:
    submit(cluster, "large", "--min-np", "99", "--max-np", "99", "--", "sleep", "60")
    cluster.wait(lambda: "too few slots" in cluster.job("large")["reason"], 60, "the reason is known", "large")
    text = describe(cluster, "large")
    assert "pending" in text
    assert "too few slots: min_np is 99 and 97 of them are missing (2 slots on 1 nodes" in text
    end(cluster, "large")


def test_a_failing_package_hook(cluster: Cluster) -> None:
    hook = cluster.base / "pack.sh"
    hook.write_text("echo 'pack.sh: there are no images here' >&2\nexit 3\n")
    submit(cluster, "packed", "--package-sh", "./pack.sh", "--pod-path", "pods", "--", "sleep", "60")
    cluster.wait_for_phase("packed", "failed", 30)
    text = describe(cluster, "packed")
    assert "package hook ./pack.sh failed with exit code 3" in text
    assert "pack.sh: there are no images here" in text
    assert len(cluster.job("packed")["worker_records"]) <= 4, "a bounded number of tries"
    assert run(cluster, "delete", "packed").returncode == 0


def test_a_script_that_crashes_at_import(cluster: Cluster) -> None:
    script = cluster.base / "crash.py"
    script.write_text("import a_module_that_nobody_has\n")
    began = time.monotonic()
    submit(cluster, "crash", "--np", "2", "--max-np", "2", "--", "python3", str(script))
    cluster.wait_for_phase("crash", "failed")
    assert time.monotonic() - began < 60
    text = describe(cluster, "crash")
    assert re.search(r"since the last completed epoch; max_(failures is 10|restarts is 3)", text)
    assert "ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in text
    assert len(cluster.job("crash")["worker_records"]) <= 12, "a bounded number of tries"
    assert run(cluster, "delete", "crash").returncode == 0


def test_checkpoint_urls_that_cannot_be_used(cluster: Cluster) -> None:
    (cluster.base / "a-file").touch()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    tries = {"unwritable": 2, "unreachable": 1}
    urls = {"unwritable": f"file://{cluster.base}/a-file/ckpt", "unreachable": f"hdfs://127.0.0.1:{port}/ckpt"}
    for job, url in urls.items():
        options = ["--max-restarts", str(tries[job] - 1), "--checkpoint", url]
        submit(cluster, job, *options, "--", sys.executable, str(TINY_JOB), "--epochs", "1")
    for job, url in urls.items():
        cluster.wait_for_phase(job, "failed", 80)
        sentence = f"checkpoints cannot be kept at {url} (set by --checkpoint or EDL_CHECKPOINT_PATH)"
        assert sentence in describe(cluster, job)
        assert cluster.events(job, "epoch") == [], "it is said before the first epoch"
        assert len(cluster.job(job)["worker_records"]) == tries[job]
        assert run(cluster, "delete", job).returncode == 0


def test_below_min_np_a_job_holds_then_fails(cluster: Cluster) -> None:
    cluster.add_node("b", slots=1)
    submit(cluster, "held", "--min-np", "3", "--max-np", "3", "--hold-timeout", "6", "--", "sleep", "60")
    cluster.wait(lambda: len(cluster.job("held")["worker_records"]) == 3, 60, "all three run", "held")
    cluster.kill("b")
    cluster.wait_for_phase("held", "holding")
    assert "too few slots: min_np is 3 and 1 of them is missing" in cluster.job("held")["reason"]
    cluster.wait_for_phase("held", "failed")
    assert "held below min_np 3 for hold_timeout_s 6" in describe(cluster, "held")
    assert run(cluster, "delete", "held").returncode == 0


# ---- what cannot be read -------------------------------------------------------------------------------------------


def test_a_znode_that_does_not_parse(cluster: Cluster) -> None:
    submit(cluster, "spoilt", "--", "sleep", "60")
    cluster.wait(lambda: cluster.job("spoilt")["worker_records"], 60, "it runs", "spoilt")
    store = ZkStore(cluster.environ["EDL_ZOOKEEPER"]).start(60)
    try:
        stored = store.get(PATHS.status("spoilt"))
        assert stored is not None
        store.set(PATHS.status("spoilt"), b"{spoilt", stored.version)
        sentence = f"{PATHS.status('spoilt')} does not hold a valid record"
        cluster.wait(lambda: any(sentence in p for p in cluster.get("/health")["problems"]), 60, "it is seen")
        refused(run(cluster, "describe", "spoilt"), 1, f"job spoilt is left alone: {sentence}")

        submit(cluster, "whole", "--", "true")
        cluster.wait_for_phase("whole", "succeeded")
        assert [w["job"] for n in cluster.get("/nodes")["nodes"] for w in n["workers"]] == []

        mended = store.get(PATHS.status("spoilt"))
        assert mended is not None
        store.set(PATHS.status("spoilt"), stored.data, mended.version)
    finally:
        store.close()
    cluster.wait(lambda: cluster.get("/health")["problems"] == [], 60, "nothing is wrong any more")
    workers = cluster.job("spoilt")["worker_records"]
    assert [w["state"] for w in workers] == ["starting"], "its worker was not touched"
    end(cluster, "spoilt")
    assert run(cluster, "delete", "whole").returncode == 0


# ---- processes that cannot start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["jobserver", "jobclient"])
def test_zookeeper_down_at_start(cluster: Cluster, module: str) -> None:
    options = ["--zookeeper", "127.0.0.1:1", "--zookeeper-wait", "1", "--log-level", "30"]
    options += ["--server-port", "0"] if module == "jobserver" else ["--node", "c"]
    done = run(cluster, *options, module=module)
    refused(done, 2, f"{module}: ZooKeeper at 127.0.0.1:1 cannot be reached (no answer within 1 s); check --zookeeper")


def test_a_port_in_use(cluster: Cluster) -> None:
    server = run(cluster, "--server-port", str(cluster.port), module="jobserver")
    sentence = f"cannot listen on 127.0.0.1:{cluster.port}: Address already in use; choose another --server_port"
    refused(server, 2, f"jobserver: {sentence}")
    client = run(cluster, "--node", "c", "--port", str(cluster.port), module="jobclient")
    refused(client, 2, f"--port {cluster.port}: Address already in use")


def test_the_cluster_has_taken_no_harm(cluster: Cluster) -> None:
    health = json.loads(cluster.api.get("/api/v1/health").text)
    assert (health["leading"], health["problems"]) == (True, [])
    assert cluster.get("/jobs")["jobs"] == []
    assert [node["node"] for node in cluster.get("/nodes")["nodes"]] == ["a"]
