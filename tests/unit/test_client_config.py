"""The JobClient's configuration: precedence, checks, the job of its command line, and the key file."""

import os
import threading
from pathlib import Path

import pytest

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.key_file import KeyFileError, key_file, load_key, load_or_create_key
from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import JobSpec, JobStatus, Phase, encode
from edl_collective.coord.signing import SpecSigner
from jobclient.__main__ import cluster_key
from jobclient.addresses import host_name_problem, interface_of
from jobclient.config import Config, parse
from jobclient.options import ConfigError
from jobclient.submit import ensure_job


def config(*argv: str, **environ: str) -> Config:
    return parse(argv, environ)


def test_defaults() -> None:
    got = config(CUDA_VISIBLE_DEVICES="")
    assert (got.zookeeper, got.zookeeper_root, got.address, got.port) == ("127.0.0.1:2181", "/edl", "127.0.0.1", 0)
    assert got.slots == len(os.sched_getaffinity(0))
    assert got.gpus == ()
    assert got.threads_per_slot == 1
    assert got.interface == "lo"
    assert got.job is None


def test_command_line_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('slots = 3\nnode = "of-file"\nlog-dir = "of-file"\nlabels = {rack = "7"}\ngpus = [1, 1, 2]\n')
    got = config("--config", str(file), "--node=of-line", EDL_NODE="of-env", EDL_LOG_DIR="of-env")
    assert (got.node, got.log_dir.name, got.slots, got.gpus) == ("of-line", "of-env", 3, (1, 1, 2))
    assert got.labels == {"rack": "7"}
    assert parse([], {"EDL_CONFIG": str(file)}).node == "of-file"


@pytest.mark.parametrize("where", [("--zookeeper", "zk1:2181"), ("--address", "10.0.0.7")])
def test_no_key_is_made_where_other_machines_must_have_the_same(tmp_path: Path, where: tuple[str, str]) -> None:
    """It would be the first to own the tree in ZooKeeper, and keep everybody with the right key out."""
    file = tmp_path / "key"
    with pytest.raises(ConfigError, match="copy that of the cluster to this machine"):
        cluster_key(config(*where, "--key-file", str(file)))
    assert not file.exists()
    made = cluster_key(config("--key-file", str(file)))
    assert cluster_key(config(*where, "--key-file", str(file))) == made


def test_slots_follow_the_devices() -> None:
    assert (config(CUDA_VISIBLE_DEVICES="2,5").slots, config(CUDA_VISIBLE_DEVICES="2,5").gpus) == (2, (2, 5))
    assert config("--slots", "1", CUDA_VISIBLE_DEVICES="2,5").gpus == (2,)
    assert config("--slots", "4", CUDA_VISIBLE_DEVICES="2,5").gpus == ()  # more slots than devices: CPU slots
    assert config("--slots", "4", "--gpus", "none", CUDA_VISIBLE_DEVICES="2,5").gpus == ()
    assert config("--gpus", "0,0").slots == 2


def test_labels_add_up(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('labels = {rack = "7", room = "1"}\n')
    labels = config("--config", str(file), "--label", "rack=8", "--label=gpu=h200").labels
    assert labels == {"rack": "8", "room": "1", "gpu": "h200"}
    assert config("--label", "a=1", "train.py", "--label", "b=2", EDL_LABELS="c=3").labels == {"a": "1", "c": "3"}


def test_logs_have_limits_unless_told_otherwise() -> None:
    assert (config().log_keep_days, config().log_max_bytes, config().log_file) == (30.0, 10 * 2**30, None)
    assert config("--log-keep-days", "0.5", "--log-max-bytes=0", "--log-file", "l").log_file == Path.cwd() / "l"


def test_predecessors_command_line_makes_a_job() -> None:
    got = config(
        *("--log_level", "20", "--log_dir", "pod_log", "--package_sh", "./package.sh", "--pod_path", "./resnet50_pod"),
        *("train.py", "--epochs", "90", "--log_dir", "scripts own"),
        PADDLE_EDL_FLEET_CHECKPOINT_PATH="hdfs://nn/c",
    )
    assert got.job == JobSpec(
        job="resnet50_pod",
        command=("python3", "train.py", "--epochs", "90", "--log_dir", "scripts own"),
        max_np=1024,
        package_hook="./package.sh",
        pod_path="./resnet50_pod",
        checkpoint_url="hdfs://nn/c",
    )
    assert got.log_dir.name == "pod_log"
    assert config("train.py").job == JobSpec(job="train", command=("python3", "train.py"), max_np=1024)
    named = config("--job_id", "mine", "--min_np=2", "--max_np=4", "train.py").job
    assert named == JobSpec(job="mine", command=("python3", "train.py"), min_np=2, max_np=4)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--slots", "0"], "--slots is 0"),
        (["--slots", "4097"], "--slots is 4097: a node has at most 4096"),
        (["--slots", "two"], "--slots is 'two'"),
        (["--slots", "3", "--gpus", "0"], "--gpus names 1 devices for --slots 3"),
        (["--node", "a/b"], "--node: 'a/b' cannot name a node"),
        (["--zookeeper", "here"], "--zookeeper is 'here'"),
        (["--zookeeper_root", "edl"], "--zookeeper-root"),
        (["--port", "70000"], "--port is 70000"),
        (["--session-timeout", "-1"], "--session-timeout is -1"),
        (["--labels", "rack"], "--labels holds 'rack'"),
        (["--label", "rack"], "--label holds 'rack'"),
        (["--health-timeout", "0"], "--health-timeout is 0"),
        (["--log-keep-days", "-1"], "--log-keep-days is -1"),
        (["--log-max-bytes", "10G"], "--log-max-bytes is '10G'"),
        (["--work-dir", "/nowhere/at/all"], "--work-dir /nowhere/at/all is not a directory"),
        (["--config", "/nowhere.toml"], "--config /nowhere.toml cannot be read"),
        (["--pod_path", "p"], "--pod_path is given without a script"),
        (["--min_np", "3", "--max_np", "2", "train.py"], "min_np is 3 and max_np is 2"),
    ],
)
def test_bad_options_are_one_sentence_that_names_them(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*argv)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_setting_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("slotz = 3\n")
    with pytest.raises(ConfigError, match="slotz"):
        config("--config", str(file))


def test_interface_of_an_address_that_is_not_here() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("--package-sh", "--zookeeper", "EDL_ZOOKEEPER", "train.py"):
        assert word in text


def test_key_is_created_once_whoever_comes_first(tmp_path: Path) -> None:
    path = key_file(None, {"EDL_KEY_FILE": str(tmp_path / "deep" / "key")})
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(load_or_create_key(path).secret)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert set(keys) == {load_key(path).secret}
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["key"]


def test_key_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_key(path)
    path.write_text("0123456789abcdef0123")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_or_create_key(path)
    path.chmod(0o600)
    assert load_key(path).secret == b"0123456789abcdef0123"
    path.write_text("short")
    with pytest.raises(KeyFileError, match="holds 5 bytes"):
        load_key(path)
    with pytest.raises(KeyFileError, match="cannot be created"):
        load_or_create_key(path / "below-a-file" / "key")
    assert key_file("given", {"EDL_KEY_FILE": "x"}).name == "given"


def test_job_is_made_once_and_the_stored_one_stands(caplog: pytest.LogCaptureFixture) -> None:
    store, paths, signer = MemoryStore(), Paths(), SpecSigner(ClusterKey(b"k" * 32))
    spec = JobSpec(job="j", command=("python3", "a.py"), max_np=8)
    assert ensure_job(store, paths, signer, spec, 5.0) == spec
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    stored = JobSpec(job="j", command=("python3", "a.py"), max_np=2, np=2, submitted_at=5.0)
    value = store.get(paths.spec("j"))
    assert value is not None
    store.set(paths.spec("j"), signer.sign(paths.spec("j"), stored), value.version)  # the JobServer has filled it in
    assert ensure_job(store, paths, signer, spec, 6.0) == stored
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    other = JobSpec(job="j", command=("python3", "b.py"), max_np=8)
    assert ensure_job(store, paths, signer, other, 7.0) == stored
    assert "the stored one stands" in caplog.text
    store.set(paths.status("j"), encode(JobStatus(phase=Phase.SUCCEEDED, reason="", since=0.0)), None)
    ensure_job(store, paths, signer, spec, 8.0)
    assert "will not run again" in caplog.text


@pytest.mark.parametrize(
    ("address", "host_name", "problem"),
    [
        ("127.0.0.1", "localhost", None),
        ("10.1.2.3", "10.1.2.3", None),
        ("10.1.2.3", "localhost", "the host name localhost leads to 127.0.0.1"),
        ("10.1.2.3", "no-such-host.invalid", "the host name no-such-host.invalid has no address"),
    ],
)
def test_a_host_name_that_other_nodes_cannot_use_is_told(address: str, host_name: str, problem: str | None) -> None:
    told = host_name_problem(address, host_name)
    assert told == problem or (told is not None and problem is not None and told.startswith(problem))
