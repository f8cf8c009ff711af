"""The driver as a real process on a real ZooKeeper, with proxies and simulated workers: no one is ever stuck."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from rendezvous_sim import Meetings, SimJob, SimNode, SimWorker, request
from trees import delete_all

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DriverRecord, decode
from edl_collective.coord.zk_store import ZkStore

pytestmark = pytest.mark.integration

KEY = ClusterKey(b"a key for tests, thirty-two byte")
JOB = "train"
ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Job:
    """A job on two nodes; `start_driver` and `kill_driver` are a real process."""

    def __init__(self, hosts: str, tmp_path: Path) -> None:
        self.hosts, self._tmp = hosts, tmp_path
        self.paths = Paths(f"/test-{uuid.uuid4().hex[:8]}")
        self.store = ZkStore(hosts, session_timeout_s=4.0).start()
        self.sim = SimJob(self.store, self.paths, JOB)
        self.nodes: dict[str, SimNode] = {}
        self.drivers: list[subprocess.Popen[bytes]] = []
        self._key_file = tmp_path / "key"
        self._key_file.write_bytes(KEY.secret)
        self._key_file.chmod(0o600)

    async def add_nodes(self, *names: str) -> None:
        meetings = Meetings()
        for name in names:
            self.nodes[name] = await SimNode(name, self.store, self.paths, JOB, KEY, meetings).start()

    def start_driver(self) -> subprocess.Popen[bytes]:
        log = (self._tmp / f"driver-{len(self.drivers)}.log").open("wb")
        command = [sys.executable, "-m", "edl_collective.driver", "--zookeeper", self.hosts, "--root", self.paths.root]
        command += ["--job", JOB, "--node", "a", "--key-file", str(self._key_file)]
        with log:
            self.drivers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT))
        return self.drivers[-1]

    def kill_driver(self) -> None:
        self.drivers[-1].kill()
        self.drivers[-1].wait()

    def log(self, driver: int = -1) -> str:
        return (self._tmp / f"driver-{driver % len(self.drivers)}.log").read_text()

    def plan(self, reason: str, **per_node: int) -> None:
        """So many workers on each node: the lowest live ones stay, new ones are spawned."""
        planned: dict[str, str] = {}
        number = 1 + max((int(n[1:]) for node in self.nodes.values() for n in node.workers), default=0)
        for name, count in per_node.items():
            alive = [w.name for w in self.nodes[name].workers.values() if w.state not in ("left", "dead")]
            kept = [w for w in alive if w in self.sim.planned or not self.sim.planned][:count]
            planned |= dict.fromkeys(kept, name)
            for _ in range(count - len(kept)):
                planned[f"w{number}"] = name
                number += 1
        self.sim.plan(planned, reason)
        for worker, name in planned.items():
            if worker not in self.nodes[name].workers:
                self.nodes[name].spawn(worker)

    def workers(self) -> dict[str, SimWorker]:
        return {w: worker for node in self.nodes.values() for w, worker in node.workers.items()}

    def whole(self) -> bool:
        """Everybody planned runs in the newest record, and nobody else lives."""
        record = self.sim.record()
        live = {n: w for n, w in self.workers().items() if w.state not in ("left", "dead")}
        return {m.worker for m in record.members} == set(self.sim.planned) == set(live) and all(
            w.state == "running" and w.generation == record.generation for w in live.values()
        )

    async def until(self, condition: Callable[[], bool], what: str = "one world") -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                states = {n: (w.state, w.generation) for n, w in self.workers().items()}
                pytest.fail(f"no {what}: {states} {self.sim.record()}\n{self.log()}")
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for driver in self.drivers:
            if driver.poll() is None:
                driver.kill()
            driver.wait()
        for node in self.nodes.values():
            await node.close()
        self.check_worlds()
        await asyncio.to_thread(self.store.close)

    def check_worlds(self) -> None:
        """No two workers have ever run in different worlds of one generation."""
        worlds: dict[int, set[tuple[int, int]]] = {}
        for worker in self.workers().values():
            for generation, place in worker.worlds.items():
                assert place not in worlds.setdefault(generation, set()), "two workers with one rank"
                worlds[generation].add(place)
        for places in worlds.values():
            assert len({size for _, size in places}) == 1, "two sizes in one generation"


@pytest.fixture
async def job(zookeeper: str, tmp_path: Path) -> AsyncIterator[Job]:
    made = Job(zookeeper, tmp_path)
    await made.add_nodes("a", "b")
    yield made
    await made.close()


async def test_a_world_of_four_forms_grows_shrinks_and_loses_a_worker(job: Job) -> None:
    job.start_driver()
    job.plan("start", a=2, b=2)
    await job.until(job.whole)
    assert job.sim.record().cause == "start"
    job.plan("scale 4 to 6", a=3, b=3)
    await job.until(job.whole)
    assert job.sim.record().cause == "plan: scale 4 to 6"
    job.plan("scale 6 to 3", a=2, b=1)
    await job.until(job.whole)
    job.workers()["w1"].kill()
    await job.until(lambda: job.sim.record().cause == "worker w1 killed by SIGKILL", "loss noticed")
    job.plan("replace w1", a=2, b=1)
    await job.until(job.whole)
    await job.nodes.pop("b").vanish()
    await job.until(lambda: job.sim.record().cause == "node b is gone", "lost node noticed")
    job.plan("node b is gone", a=2)
    await job.until(job.whole)


def phase_idle(job: Job) -> bool:
    return job.whole()


def phase_some_at_gate(job: Job) -> bool:
    return any(w.state == "gate" and w.generation for w in job.workers().values())


def phase_record_written(job: Job) -> bool:
    return job.sim.record().generation == 2


def phase_some_assigned(job: Job) -> bool:
    return any(w.state == "init" and w.generation == 2 for w in job.workers().values())


def phase_keys_put(job: Job) -> bool:
    return any(w.generation == 2 and w.requests > w.worlds.get(1, (0, 0))[1] * 6 for w in job.workers().values())


PHASES = [phase_idle, phase_some_at_gate, phase_record_written, phase_some_assigned, phase_keys_put]


@pytest.mark.parametrize("phase", PHASES, ids=lambda p: p.__name__.removeprefix("phase_"))
async def test_the_driver_killed_in_a_resize(job: Job, phase: Callable[[Job], bool]) -> None:
    job.start_driver()
    job.plan("start", a=2, b=1)
    await job.until(job.whole)
    if phase is not phase_idle:
        job.plan("grow", a=2, b=2)
    while not phase(job):  # noqa: ASYNC110 - the phase is to be caught as soon as it begins
        await asyncio.sleep(0)
    job.kill_driver()
    running = {n: w.generation for n, w in job.workers().items() if w.state == "running"}
    started_s = time.monotonic()
    job.start_driver()
    await job.until(job.whole)
    print(f"{phase.__name__}: whole again {1000 * (time.monotonic() - started_s):.0f} ms after the new driver's start")
    if phase is phase_idle:
        assert running == {n: w.generation for n, w in job.workers().items()}, "running workers are adopted"
    job.plan("shrink", a=1, b=1)
    await job.until(job.whole)
    assert job.sim.record().epoch == 2


async def test_an_old_driver_that_wakes_up_is_fenced(job: Job) -> None:
    old = job.start_driver()
    job.plan("start", a=1, b=1)
    await job.until(job.whole)
    old.send_signal(signal.SIGSTOP)
    try:
        job.start_driver()
        job.plan("grow", a=2, b=1)
        await job.until(job.whole)
    finally:
        old.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(old.wait, 60) == 3
    assert "has taken the seat" in job.log(0)
    job.plan("shrink", a=1, b=1)
    await job.until(job.whole)


async def test_sigterm_ends_the_driver_and_takes_its_address_away(job: Job) -> None:
    driver = job.start_driver()
    path = job.paths.driver(JOB)
    await job.until(lambda: job.store.get(path) is not None, "address")
    found = job.store.get(path)
    assert found is not None
    assert decode(found.data, DriverRecord).pid == driver.pid
    driver.terminate()
    assert await asyncio.to_thread(driver.wait, 60) == 0
    await job.until(lambda: job.store.get(path) is None, "address gone")


async def test_the_driver_of_a_deleted_job_ends(job: Job) -> None:
    driver = job.start_driver()
    await job.until(lambda: job.store.get(job.paths.driver(JOB)) is not None, "address")
    delete_all(job.store, job.paths.job(JOB))
    assert await asyncio.to_thread(driver.wait, 60) == 0


async def test_a_request_with_a_wrong_token_is_refused(job: Job) -> None:
    job.start_driver()
    job.plan("start", a=1)
    await job.until(job.whole)
    place = job.workers()["w1"].place
    assert place is not None
    token = KEY.worker_token(JOB, "w1")
    stranger = place.rendezvous.replace(token, KEY.worker_token(JOB, "w2"))
    assert (await request(stranger, "PUT", "/global/0", b"x"))[0] == 403
    assert (await request(place.rendezvous.replace("/r/", "/x/"), "GET", "/global/0"))[0] == 404
    assert (await request(place.rendezvous, "PUT", "/global/0", bytes(5 << 20)))[0] == 413
    old = place.rendezvous.removesuffix("/1") + "/0"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(request(old, "GET", "/global/0"), 0.2)


def test_help_teaches_and_wrong_options_are_one_line(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "edl_collective.driver"]
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "rendezvous record" in shown.stdout
    bad = ["--zookeeper", "127.0.0.1:1", "--job", "a/b", "--node", "a", "--key-file", os.devnull]
    refused = subprocess.run([*run, *bad], capture_output=True, text=True, check=False, cwd=ROOT)
    assert refused.returncode == 2
    assert "cannot name a job" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY.secret)
    key_file.chmod(0o644)
    command = [sys.executable, "-m", "edl_collective.driver", "--zookeeper", "127.0.0.1:1", "--job", "j", "--node", "a"]
    refused = subprocess.run(
        [*command, "--key-file", str(key_file)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert refused.returncode == 2
    assert "chmod 600" in refused.stderr


def test_the_driver_loads_neither_torch_nor_horovod() -> None:
    loaded = "[m for m in ('torch', 'horovod', 'numpy') if m in sys.modules]"
    code = f"import sys, edl_collective.driver.__main__; print({loaded})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"
