"""The predecessor's flow, typed as its users know it: two scripts, nothing else, train and rescale.

The scripts run in a copy of the example's folder, so that the checkout stays clean, with a home of their own. Every
process carries a tag in its environment, by which those that are left are found.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from edl_collective.coord.key_file import load_key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "resnet50_pod"
TAG = "EDL_TEST_TAG"
EPOCHS = 12
TRAIN = "train.py --model tiny --image_size 8 --augmentation shift_rotate --workers 0 --total_batch_size 16 --lr 0.05"


class Terminals:
    """A folder like examples/resnet50_pod, and shells in it; `type` leaves a command running under a name."""

    def __init__(self, base: Path) -> None:
        self.folder, self.images, self.checkpoints = base / "resnet50", base / "digits", base / "checkpoints"
        self.home = base / "home"
        self.home.mkdir()
        shutil.copytree(EXAMPLE, self.folder, ignore=shutil.ignore_patterns("start_job_*", "__pycache__"))
        for link in EXAMPLE.glob("start_job_*.sh"):
            (self.folder / link.name).symlink_to(link.resolve())
        self.tag = uuid.uuid4().hex
        kept = {name: value for name, value in os.environ.items() if "EDL_" not in name}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = {**kept, "HOME": str(self.home), "PATH": path, "PYTHONPATH": str(ROOT), TAG: self.tag}
        self.shells: dict[str, subprocess.Popen[bytes]] = {}

    def type(self, name: str, command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            self.shells[name] = subprocess.Popen(
                ["bash", "-c", command], cwd=self.folder, env=self.environ, stdout=out, stderr=subprocess.STDOUT
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                logs = [*self.folder.glob("*.out"), *self.folder.glob("pod_log/*/*.log")]
                story = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)
                raise AssertionError(f"after {timeout_s:g} s not true: {what}\n{story}")
            time.sleep(0.1)  # the state of other processes has no event to wait for here

    def left(self) -> list[psutil.Process]:
        """What runs of all that was started here, directly or not."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(TAG) == self.tag and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def end(self, name: str) -> int:
        """SIGTERM, as Ctrl-C or a system that shuts down would; returns the exit status."""
        self.shells[name].send_signal(signal.SIGTERM)
        return self.shells[name].wait(40)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    terminals = Terminals(tmp_path)
    yield terminals
    for process in terminals.left():
        process.kill()
    for shell in terminals.shells.values():
        shell.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Api:
    """What the JobServer tells of the job."""

    def __init__(self, port: int, key: Path) -> None:
        headers = {"Authorization": f"Bearer {load_key(key).api_token}"}
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", headers=headers, trust_env=False)

    def get(self, path: str) -> Any:
        try:
            answer = self._http.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = self.get("/jobs/resnet50_pod/events") or {"events": []}
        return [event for event in found["events"] if event["kind"] == kind]

    def phase(self) -> str | None:
        job = self.get("/jobs/resnet50_pod")
        return None if job is None else job["phase"]

    def close(self) -> None:
        self._http.close()


def test_two_scripts_train_and_rescale(terminals: Terminals) -> None:
    made = [sys.executable, str(EXAMPLE / "make_digits.py"), str(terminals.images), "--size", "8", "--held_out", "0.1"]
    subprocess.run(made, check=True, capture_output=True)
    port = free_port()

    terminals.type(
        "server",
        "exec ./start_job_server.sh --node_ips 127.0.0.1 --pod_num_of_node 2 --gpu_num_of_node 2 "
        f"--time_interval_to_change 1 --add_pods_one_step 1 --del_pods_one_step 1 --server_port {port}",
    )
    terminals.type(
        "client",
        f"export EDL_IMAGENET_PATH={terminals.images} EDL_CHECKPOINT_PATH={terminals.checkpoints}\n"
        "mkdir -p resnet50_pod\n"
        "exec ./start_job_client.sh --package_sh ./package.sh --pod_path ./resnet50_pod --log_dir ./pod_log "
        f"--slots 2 {TRAIN} --epochs {EPOCHS}",
    )
    terminals.wait((terminals.home / ".edl" / "key").exists, 60, "the cluster has a key")
    api = Api(port, terminals.home / ".edl" / "key")
    terminals.wait(lambda: api.phase() == "running", 60, "the job runs")
    terminals.wait(lambda: api.phase() in ("succeeded", "failed"), 120, "the job ends")
    assert api.phase() == "succeeded", api.get("/jobs/resnet50_pod")["reason"]
    terminals.wait(lambda: len(api.events("epoch")) >= EPOCHS, 60, "the last epoch is told")
    epochs, resizes = api.events("epoch"), api.events("resize")
    workers = [record["worker"] for record in api.get("/jobs/resnet50_pod")["worker_records"]]
    api.close()

    assert [event["fields"]["epoch"] for event in epochs] == list(range(EPOCHS))
    sizes = [(event["fields"]["from"], event["fields"]["to"]) for event in resizes]
    assert {(2, 1), (1, 2)} <= set(sizes), sizes
    assert len(workers) >= 3, "a worker that returns has a new id"
    for worker in workers:
        pod = terminals.folder / "resnet50_pod" / worker
        assert (pod / "train.py").is_file()
        assert (pod / "ImageNet").resolve() == terminals.images
        assert (pod / "fleet_checkpoints").resolve() == terminals.checkpoints
        assert (terminals.folder / "pod_log" / "resnet50_pod" / f"{worker}.log").is_file()
    assert list(terminals.checkpoints.glob("*/manifest.json"))
    assert (terminals.end("client"), terminals.end("server")) == (0, 0)
    assert terminals.left() == []
    assert not (terminals.home / ".edl" / "zookeeper.hosts").exists()


def test_kill_9_of_the_server_script_leaves_nothing_and_a_new_one_goes_on(terminals: Terminals) -> None:
    port = free_port()
    hosts = terminals.home / ".edl" / "zookeeper.hosts"
    for last in (False, True):
        terminals.type("server", f"exec ./start_job_server.sh --server_port {port}")
        terminals.wait(lambda: "leads in epoch" in terminals.said("server"), 60, "the JobServer leads")
        address = hosts.read_text()
        if not last:
            first = address
            terminals.shells["server"].kill()
            terminals.shells["server"].wait()
            terminals.wait(lambda: not terminals.left(), 60, "nothing is left of a script that was killed")
    assert address == first, "JobClients find it where it was"
    assert "epoch 2" in terminals.said("server"), "it has the data of the first"
    other = subprocess.run(
        ["./start_job_server.sh", "--server_port", str(port)],
        cwd=terminals.folder, env={**terminals.environ, "EDL_ZOOKEEPER": address},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert other.returncode == 2
    wanted = f"jobserver: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --server_port\n"
    assert other.stderr == wanted
    assert terminals.end("server") == 0
    assert terminals.left() == []
