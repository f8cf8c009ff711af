"""The start scripts: what they fill in, what they refuse before anything is started, and how they find each other."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from edl_collective.coord.local_hosts import data_dir, last_port, tell_hosts, told_hosts, withdraw_hosts
from jobclient import start as client
from jobclient.config import parse
from jobserver import start as server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "resnet50_pod"
Start = Callable[..., tuple[int, list[str], Mapping[str, str]]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Run the client's start in a folder with the example's files; returns status, arguments, environment."""
    for name in ("package.sh", "train.py"):
        (tmp_path / name).touch()
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "WAIT_S", 0.0)
    started: list[tuple[Sequence[str], Mapping[str, str]]] = []

    def run_client(argv: Sequence[str], environ: Mapping[str, str]) -> int:
        started.append((argv, environ))
        return 0

    monkeypatch.setattr(client, "run_client", run_client)
    paths = {"EDL_IMAGENET_PATH": "images", "EDL_CHECKPOINT_PATH": "ckpt", "EDL_DATA_DIR": str(tmp_path)}

    def run(*argv: str, **environ: str) -> tuple[int, list[str], Mapping[str, str]]:
        started.clear()
        given = {name: value for name, value in {"EDL_ZOOKEEPER": "h:1", **paths, **environ}.items() if value}
        status = client.main(argv, given)
        if not started:
            return status, [], {}
        return status, list(started[0][0]), started[0][1]

    return run


def test_without_options_it_is_the_example(start: Start, tmp_path: Path) -> None:
    status, argv, environ = start()
    assert status == 0
    assert argv == [
        *("--package_sh", "./package.sh", "--pod_path", "./resnet50_pod", "--log_dir", "./pod_log", "train.py")
    ]
    assert environ["EDL_IMAGENET_PATH"] == str(tmp_path / "images"), "workers run in another directory"
    job = parse(argv, environ).job
    assert job is not None
    assert (job.job, job.command, job.checkpoint_url) == (
        *("resnet50_pod", ("python3", "train.py"), str(tmp_path / "ckpt")),
    )


def test_what_is_given_wins(start: Start) -> None:
    _, argv, environ = start("--pod-path=pods", "train.py", "--epochs", "3", EDL_LOG_DIR="logs")
    assert argv == ["--pod-path=pods", "--package_sh", "./package.sh", "train.py", "--epochs", "3"]
    assert parse(argv, environ).log_dir.name == "logs"
    assert start("--package_sh", "mine.sh", "my.py", EDL_IMAGENET_PATH="")[0] == 0
    assert start(EDL_CHECKPOINT_PATH="hdfs://nn:8020/a")[2]["EDL_CHECKPOINT_PATH"] == "hdfs://nn:8020/a"


def test_the_predecessors_variables_are_accepted(start: Start, tmp_path: Path) -> None:
    old = {"PADDLE_EDL_IMAGENET_PATH": "images", "PADDLE_EDL_FLEET_CHECKPOINT_PATH": "old"}
    status, argv, environ = start(EDL_IMAGENET_PATH="", EDL_CHECKPOINT_PATH="", **old)
    job = parse(argv, environ).job
    assert (status, environ["PADDLE_EDL_IMAGENET_PATH"]) == (0, str(tmp_path / "images"))
    assert job is not None
    assert job.checkpoint_url == str(tmp_path / "old")
    hook = [str(EXAMPLE / "package.sh"), "-pod_id", "w1"]
    names = {"PATH": "/usr/bin:/bin", **{name: environ[name] for name in old}}
    subprocess.run(hook, env=names, cwd=tmp_path, check=True)
    links = {link.name: link.resolve() for link in (tmp_path / "resnet50_pod" / "w1").iterdir() if link.is_symlink()}
    assert links == {"ImageNet": tmp_path / "images", "fleet_checkpoints": tmp_path / "old"}


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"EDL_IMAGENET_PATH": ""}, "EDL_IMAGENET_PATH is not set: export EDL_IMAGENET_PATH=..."),
        ({"EDL_CHECKPOINT_PATH": ""}, "EDL_CHECKPOINT_PATH is not set: export EDL_CHECKPOINT_PATH=..."),
        ({"EDL_IMAGENET_PATH": "/nope"}, "EDL_IMAGENET_PATH is /nope, which is not a folder on this machine"),
        ({"EDL_ZOOKEEPER": ""}, "no ZooKeeper is known after 0 s: start ./start_job_server.sh on this machine"),
    ],
)
def test_what_would_fail_every_worker_is_said_first(
    start: Start, capsys: pytest.CaptureFixture[str], environ: dict[str, str], sentence: str
) -> None:
    assert start(**environ)[:2] == (2, [])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"start_job_client.sh: {sentence}")


def test_in_another_folder_it_says_where_to_go(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path / "images")
    assert start()[0] == 2
    assert "there is no package.sh in" in capsys.readouterr().err
    assert start("--package_sh", "/a/package.sh", "train.py")[0] == 0


def test_the_client_finds_the_zookeeper_of_the_server_script(start: Start, tmp_path: Path) -> None:
    tell_hosts(tmp_path, "127.0.0.1:4711")
    assert "127.0.0.1:4711" in start(EDL_ZOOKEEPER="")[1]
    assert "127.0.0.1:4711" not in start("--zookeeper", "h:2", EDL_ZOOKEEPER="")[1]
    assert "127.0.0.1:4711" not in start()[1]


def test_told_hosts_are_withdrawn_and_the_port_is_remembered(tmp_path: Path) -> None:
    assert (told_hosts(tmp_path), last_port(tmp_path, 2181)) == (None, 2181)
    tell_hosts(tmp_path, "127.0.0.1:4711")
    assert (told_hosts(tmp_path), last_port(tmp_path, 2181)) == ("127.0.0.1:4711", 4711)
    withdraw_hosts(tmp_path)
    withdraw_hosts(tmp_path)
    assert (told_hosts(tmp_path), last_port(tmp_path, 2181)) == (None, 4711)
    assert data_dir({"EDL_DATA_DIR": str(tmp_path)}) == tmp_path
    assert data_dir({}) == Path("~/.edl").expanduser()


def test_the_server_script_teaches_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert server.main(["--help"], {}) == 0
    text = capsys.readouterr().out
    options = "node_ips pod_num_of_node gpu_num_of_node time_interval_to_change add_pods_one_step del_pods_one_step"
    assert all(f"--{name}" in text for name in [*options.split(), "server_port", "zookeeper"])
    assert server.main(["--pod_num_of_node", "3", "--gpu_num_of_node", "4"], {}) == 2
    wanted = "start_job_server.sh: --gpu_num_of_node 4 must be a multiple of --pod_num_of_node 3, both at least 1\n"
    assert capsys.readouterr().err == wanted


def test_links_in_the_example_lead_to_the_scripts() -> None:
    for name in ("start_job_server.sh", "start_job_client.sh"):
        assert (EXAMPLE / name).is_symlink()
        assert (EXAMPLE / name).resolve() == ROOT / "scripts" / name
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["start_job_server.sh", "start_job_client.sh"])
def test_without_edl_the_scripts_say_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / name
    script.write_text((ROOT / "scripts" / name).read_text())
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(
        ["bash", str(script)], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"run {tmp_path}/scripts/setup.sh, or activate the environment that has EDL" in done.stderr
