"""The environment of a worker: what it inherits, what the spec may change, what it may not."""

import pytest

from distill.teacher.command import serve
from edl_collective.coord.paths import check_name
from edl_collective.coord.records import JobKind, JobSpec, NodeRecord, PlannedWorker
from jobclient.worker_env import (
    RESERVED,
    NodeEnvironment,
    hook_command,
    inherited,
    job_environment,
    teacher_name,
    worker_directory,
    worker_environment,
)

BASE = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "PYTHONPATH": "/src",
    "EDL_IMAGENET_PATH": "/data",
    "PADDLE_EDL_IMAGENET_PATH": "/data",
    "EDL_TOKEN": "t",
    "EDL_KEY_FILE": "/home/me/key",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    "MY_SECRET": "x",
    "HTTPS_PROXY": "http://proxy",
}
SHARED = NodeEnvironment(BASE, "/venv/bin", "/tmp/a.sock", "eth1", 4)
PLANNED = PlannedWorker("w7", "n1", 1)


def node(gpus: tuple[int, ...] = (5, 6)) -> NodeRecord:
    return NodeRecord(node="n1", incarnation="i", address="10.0.0.1", port=1, slots=2, gpus=gpus)


def env(spec: JobSpec | None = None, gpus: tuple[int, ...] = (5, 6)) -> dict[str, str]:
    return worker_environment(SHARED, node(gpus), PLANNED, spec or JobSpec(job="j", command=("x",)), "token")


def test_another_user_has_its_own_home_and_none_of_the_jobclients_folders() -> None:
    base = {**BASE, "USER": "root", "XDG_CACHE_HOME": "/root/.cache"}
    shared = NodeEnvironment(base, "/venv/bin", "/tmp/a.sock", "eth1", 4, user={"HOME": "/home/edl", "USER": "edl"})
    got = job_environment(shared, JobSpec(job="j", command=("x",)))
    assert (got["HOME"], got["USER"], "XDG_CACHE_HOME" in got) == ("/home/edl", "edl", False)
    given = job_environment(shared, JobSpec(job="j", command=("x",), env={"HOME": "/data"}))
    assert given["HOME"] == "/data"


def test_inherits_only_what_is_listed() -> None:
    got = inherited(BASE)
    assert got["PYTHONPATH"] == "/src"
    assert got["PADDLE_EDL_IMAGENET_PATH"] == "/data"
    assert got["HTTPS_PROXY"] == "http://proxy"
    assert not got.keys() & {"MY_SECRET", "EDL_KEY_FILE", "EDL_TOKEN", "CUDA_VISIBLE_DEVICES"}


def test_worker_knows_who_it_is_and_what_it_has() -> None:
    got = env()
    assert got["EDL_JOB"] == "j"
    assert got["EDL_WORKER"] == "w7"
    assert (got["EDL_NODE"], got["HOROVOD_HOSTNAME"]) == ("n1", "n1")
    assert got["EDL_SLOT"] == "1"
    assert got["EDL_WORKER_TOKEN"] == "token"
    assert got["EDL_AGENT_SOCKET"] == "/tmp/a.sock"
    assert got["CUDA_VISIBLE_DEVICES"] == "6"
    assert got["OMP_NUM_THREADS"] == got["MKL_NUM_THREADS"] == "4"
    assert got["HOROVOD_GLOO_IFACE"] == got["NCCL_SOCKET_IFNAME"] == "eth1"
    assert got["HOROVOD_GLOO_TIMEOUT_SECONDS"] == "10"
    assert got["HOROVOD_CACHE_CAPACITY"] == "0"
    assert got["PATH"] == "/venv/bin:/usr/bin"
    assert "EDL_CHECKPOINT_URL" not in got
    assert not got.keys() & {"HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_GLOO_RENDEZVOUS_ADDR"}


def test_cpu_slots_see_no_gpu() -> None:
    assert env(gpus=())["CUDA_VISIBLE_DEVICES"] == ""


def test_spec_wins_over_defaults_and_the_inherited() -> None:
    spec = JobSpec(
        job="j",
        command=("x",),
        env={"OMP_NUM_THREADS": "9", "HOME": "/h", "CUDA_VISIBLE_DEVICES": "1", "ANY": "thing"},
        checkpoint_url="hdfs://nn/c",
    )
    got = env(spec)
    assert (got["OMP_NUM_THREADS"], got["MKL_NUM_THREADS"]) == ("9", "4")
    assert (got["HOME"], got["CUDA_VISIBLE_DEVICES"], got["ANY"]) == ("/h", "1", "thing")
    assert got["EDL_CHECKPOINT_URL"] == "hdfs://nn/c"


@pytest.mark.parametrize("name", [*sorted(name for name in env() if RESERVED.fullmatch(name)), "HOROVOD_RANK"])
def test_spec_cannot_say_who_a_worker_is(name: str) -> None:
    spec = JobSpec(job="j", command=("x",), env={name: "forged"})
    assert env(spec).get(name) == env().get(name)
    assert job_environment(SHARED, spec).get(name) != "forged"


def test_hook_and_directory() -> None:
    plain = JobSpec(job="j", command=("x",))
    packed = JobSpec(job="j", command=("x",), package_hook="package.sh", pod_path="pods")
    assert (hook_command(plain, "w1"), worker_directory(plain, "w1")) == (None, ".")
    assert (hook_command(packed, "w1"), worker_directory(packed, "w1")) == (
        ("./package.sh", "-pod_id", "w1"),
        "pods/w1",
    )


def test_a_worker_knows_where_its_state_is_held_and_a_job_may_not_say_it() -> None:
    spec = JobSpec(job="j", command=("x",), env={"EDL_HELD_DIR": "/elsewhere", "EDL_HELD_SHARE": "0.1"})
    got = worker_environment(SHARED, node(), PLANNED, spec, "token", "/dev/shm/x")
    assert (got["EDL_HELD_DIR"], got["EDL_HELD_SHARE"]) == ("/dev/shm/x", "0.1")
    assert "EDL_HELD_DIR" not in env(spec)


def test_a_teacher_knows_its_service_its_name_and_what_follows_from_its_slot() -> None:
    spec = JobSpec(job="big-teacher", command=("x",), kind=JobKind.TEACHER, service="svc")
    got = env(spec)
    assert (got["EDL_TEACHER_SERVICE"], got["EDL_TEACHER_TEACHER_ID"]) == ("svc", "big-teacher-w7")
    assert (got["EDL_TEACHER_HOST"], got["EDL_TEACHER_PORT"], got["EDL_TEACHER_GPU_IDS"]) == ("10.0.0.1", "0", "0")
    assert got["CUDA_VISIBLE_DEVICES"] == "6"
    assert "EDL_TEACHER_GPU_IDS" not in env(spec, gpus=())
    assert "EDL_TEACHER_SERVICE" not in env()


def test_names_of_teachers_are_names() -> None:
    for job in ("j", "x" * 63, "x" * 59 + ".y"):
        assert check_name("teacher", teacher_name(job, "w12")).endswith("-w12")


def test_zookeeper_is_the_one_of_the_jobclient() -> None:
    shared = NodeEnvironment({"EDL_ZOOKEEPER": "old:1"}, "/v", "/s", None, 1, "zk:2181", "/team")
    got = job_environment(shared, JobSpec(job="j", command=("x",)))
    assert (got["EDL_ZOOKEEPER"], got["EDL_ZOOKEEPER_ROOT"]) == ("zk:2181", "/team")
    mine = job_environment(shared, JobSpec(job="j", command=("x",), env={"EDL_ZOOKEEPER": "other:1"}))
    assert mine["EDL_ZOOKEEPER"] == "other:1"


def test_the_teacher_server_takes_what_the_jobclient_says(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = JobSpec(job="j", command=("x",), kind=JobKind.TEACHER, service="svc")
    for name, value in env(spec).items():
        if name.startswith("EDL_"):
            monkeypatch.setenv(name, value)
    taken = serve.make_context("serve", ["--model", "m.pt"]).params
    assert (taken["service"], taken["teacher_id"], taken["port"]) == ("svc", "j-w7", 0)
    assert (taken["host"], taken["gpu_ids"]) == ("10.0.0.1", "0")
    assert serve.make_context("serve", ["--model", "m.pt", "--port", "8500"]).params["port"] == 8500
