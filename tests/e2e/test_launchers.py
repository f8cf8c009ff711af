"""One script, every launcher: alone, horovodrun, horovodrun --mpi, horovodrun elastic with our plans, and JobClients.

And a script that knows only Horovod elastic: unchanged under horovodrun, with one changed import under JobClients.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import horovod.torch as hvd
import pytest
from cluster import ROOT, TINY_JOB, Cluster

from edl_collective.audit import audit, derive_lineage, read_logs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLES = 1500
HOROVOD_JOB = ROOT / "tests" / "jobs" / "horovod_elastic.py"
HOROVODRUN = str(Path(sys.executable).parent / "horovodrun")
PLAIN_IMPORT = "import horovod.torch as hvd\n"
OUR_IMPORT = "import edl_collective.horovod as hvd\n"

#: what stands before `python train.py`, and the size of the world that it makes; MPI only where Horovod was built so
FIXED = {"horovodrun": [HOROVODRUN, "-np", "2", "--network-interfaces", "lo"]}
if hvd.mpi_built():
    FIXED["horovodrun --mpi"] = [HOROVODRUN, "--mpi", "-np", "2", "--network-interfaces", "lo"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def finish(command: list[str], environ: dict[str, str], timeout_s: float = 90) -> str:
    """Run to the end; what it said."""
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def assert_exactly_once(records_dir: Path, epochs: int) -> None:
    records = read_logs(records_dir.glob("*.jsonl"))
    report = audit(records, derive_lineage(records), SAMPLES, range(epochs))
    assert report.ok, str(report)


def sizes_seen(records_dir: Path) -> list[int]:
    """World sizes in which steps were taken, in the order of the generations."""
    worlds = {taken.generation: taken.world_size for taken in read_logs(records_dir.glob("*.jsonl")).taken}
    return [worlds[generation] for generation in sorted(worlds)]


@pytest.mark.parametrize("launcher", FIXED.values(), ids=list(FIXED))
def test_a_fixed_world_goes_on_where_the_script_alone_stopped(tmp_path: Path, launcher: list[str]) -> None:
    script = [sys.executable, str(TINY_JOB), "--record_dir", str(tmp_path / "records")]
    environ = environment(EDL_CHECKPOINT_URL=f"file://{tmp_path}/ckpt")
    finish([*script, "--epochs", "1"], environ)
    finish([*launcher, *script, "--epochs", "2"], environ)
    assert sizes_seen(tmp_path / "records") == [1, 2]
    assert_exactly_once(tmp_path / "records", 2)


@contextlib.contextmanager
def horovodrun(cluster: Cluster, job: str, command: list[str]) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """An elastic horovodrun that takes its hosts from the plan of `job`, and what it says."""
    out = cluster.base / "horovodrun.out"
    discovery = ["--host-discovery-script", str(ROOT / "scripts" / "discover_hosts.sh")]
    elastic = ["-np", "1", "--min-np", "1", "--max-np", "4", "--network-interfaces", "lo", *discovery]
    environ = {**cluster.environ, "EDL_JOB": job, "EDL_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with out.open("wb") as stream:
        process = subprocess.Popen(
            [HOROVODRUN, *elastic, *command], env=environ, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        yield process, out
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def tiny_sizes(cluster: Cluster, _out: Path) -> list[int]:
    records = cluster.base / "records"
    return sizes_seen(records) if records.exists() else []


def printed_sizes(_cluster: Cluster, out: Path) -> list[int]:
    return [int(size) for size in re.findall(r"batch \d+ size (\d+)", out.read_text())]


#: of 2.5 s each, until it may hurry
EPOCHS = 30
TINY_COMMAND = [sys.executable, str(TINY_JOB), "--epochs", str(EPOCHS), "--step_s", "0.1", "--record_dir"]
HOROVOD_COMMAND = [sys.executable, str(HOROVOD_JOB), "--step_s", "0.1", "--stop_file"]


@pytest.mark.parametrize("script", ["ours", "horovod's own, unchanged"])
def test_external_job_follows_the_plans_of_the_jobserver(cluster: Cluster, script: str) -> None:
    ours = script == "ours"
    stop_file = cluster.base / ("records/hurry" if ours else "stop")
    command = [*TINY_COMMAND, str(cluster.base / "records")] if ours else [*HOROVOD_COMMAND, str(stop_file)]
    seen: Callable[[Cluster, Path], list[int]] = tiny_sizes if ours else printed_sizes
    cluster.add_node("a", slots=4)
    cluster.submit("ext", kind="external", min_np=1, max_np=4, np=1)
    cluster.wait_for_phase("ext", "running")
    with horovodrun(cluster, "ext", command) as (process, out):
        cluster.wait(lambda: seen(cluster, out)[-1:] == [1], 60, "one worker trains", "ext")
        cluster.post("/jobs/ext/scale", {"np": 3})
        cluster.wait(lambda: seen(cluster, out)[-1:] == [3], 60, "three workers train", "ext")
        cluster.post("/jobs/ext/scale", {"np": 1})
        cluster.wait(lambda: seen(cluster, out)[-1:] == [1], 60, "one worker trains again", "ext")
        stop_file.touch()
        assert process.wait(60) == 0, out.read_text()
        if ours:
            assert_exactly_once(cluster.base / "records", EPOCHS)
        else:
            numbers = [int(number) for number in re.findall(r"batch (\d+) size", out.read_text())]
            assert f"done {numbers[-1]} sum" in out.read_text()
    # The JobServer launched nothing and so sees no end: whoever ran horovodrun says that it is over.
    assert cluster.job("ext")["phase"] == "running"
    cluster.post("/jobs/ext/stop")
    cluster.wait_for_phase("ext", "stopped")
    assert cluster.job("ext")["plan"]["workers"] == []


def test_horovod_script_with_one_changed_import_runs_under_jobclients(cluster: Cluster) -> None:
    source = HOROVOD_JOB.read_text()
    assert source.count(PLAIN_IMPORT) == 1
    script = cluster.base / "train.py"
    script.write_text(source.replace(PLAIN_IMPORT, OUR_IMPORT))
    command = [sys.executable, str(script), "--step_s", "0.05", "--stop_file", str(cluster.base / "stop")]
    for node in ("a", "b"):
        cluster.add_node(node)
    spec = {"job": "dropin", "command": command, "min_np": 1, "max_np": 2, "np": 1}
    assert cluster.api.post("/api/v1/jobs", json=spec).status_code == 201

    def log() -> str:
        return "".join(path.read_text() for path in cluster.base.glob("logs/*/*.log"))

    def trains(size: int, after: int) -> bool:
        batches = [int(number) for number in re.findall(rf"batch (\d+) size {size}\n", log())]
        return max(batches, default=0) > after

    def newest() -> int:
        return max((int(number) for number in re.findall(r"batch (\d+) size", log())), default=0)

    cluster.wait(lambda: trains(1, 0), 60, "one worker trains", "dropin")
    cluster.post("/jobs/dropin/scale", {"np": 2})
    cluster.wait(lambda: trains(2, 0), 60, "two workers train", "dropin")

    victim, at = cluster.running("dropin")[0], newest()  # rank 0: the other one has the state now
    os.kill(victim["pid"], signal.SIGKILL)
    cluster.wait(lambda: trains(2, at + 2), 60, "two workers train after a kill", "dropin")

    at = newest()
    cluster.post("/jobs/dropin/scale", {"np": 1})
    cluster.wait(lambda: trains(1, at), 60, "one worker trains again", "dropin")
    (cluster.base / "stop").touch()
    cluster.wait_for_phase("dropin", "succeeded", 60)
    assert log().count("done") == 1
    numbers = [int(number) for number in re.findall(r"batch (\d+) size", log())]
    assert set(numbers) == set(range(1, newest() + 1))  # committed after each batch: none lost
