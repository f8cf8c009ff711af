"""URLs of HDFS, what libhdfs needs from the environment, and the drivers that cannot run here: pure or with fakes."""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoints import CheckpointUnsupported, TrainStatus, save_checkpoint
from checkpoints.drivers import DRIVERS, open_driver
from checkpoints.drivers.base import CHUNK_BYTES
from checkpoints.drivers.generic import FsspecWriter
from checkpoints.drivers.hadoop_env import prepare
from checkpoints.drivers.hdfs_native import HdfsNativeDriver
from checkpoints.drivers.local import LocalDriver, LocalWriter
from checkpoints.drivers.location import NAME_SERVICE, Location, parse_location

ROOT = Path(__file__).parents[2]


def test_a_plain_url_has_host_and_folder() -> None:
    assert parse_location("hdfs://nn:9000/runs/a/") == Location(("nn:9000",), "/runs/a")
    assert parse_location("hdfs://nn:9000/runs/a/").settings() == {}
    assert parse_location("hdfs:///runs") == Location((), "/runs")
    assert parse_location("hdfs://nn").path == ""


def test_options_are_taken_from_the_url() -> None:
    found = parse_location("hdfs://eva@nn/a?driver=libhdfs&replication=2&block_size=256m&timeout=2.5")
    assert found == Location(("nn",), "/a", "libhdfs", "eva", 2, 256 << 20, 2.5)
    assert parse_location("hdfs://eva@nn/a?user=max").user == "max"
    assert parse_location("hdfs://nn/a?block_size=4096").block_size_bytes == 4096


def test_several_namenodes_become_a_name_service() -> None:
    found = parse_location("hdfs://a:9000,b/runs")
    assert found.authority == NAME_SERVICE
    settings = found.settings()
    assert settings["dfs.nameservices"] == NAME_SERVICE
    names = settings[f"dfs.ha.namenodes.{NAME_SERVICE}"].split(",")
    addresses = [settings[f"dfs.namenode.rpc-address.{NAME_SERVICE}.{name}"] for name in names]
    assert addresses == ["a:9000", "b:8020"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hdfs://nn/a?replicaton=2", "unknown option 'replicaton'"),
        ("hdfs://nn/a?replication=0", "replication=0"),
        ("hdfs://nn/a?replication=many", "replication=many"),
        ("hdfs://nn/a?block_size=1t", "block_size=1t"),
        ("hdfs://nn/a?timeout=inf", "timeout=inf"),
        ("hdfs://nn:port/a", "does not parse"),
        ("hdfs://nn/a?driver=nosuch", "choose one of"),
    ],
)
def test_a_wrong_option_is_one_sentence(url: str, said: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=said):
        open_driver(url)


def test_the_argument_goes_before_the_url_and_the_url_before_the_scheme(tmp_path: Path) -> None:
    assert isinstance(open_driver("hdfs://nn/a?driver=file"), LocalDriver)
    assert isinstance(open_driver("hdfs://nn/a?driver=nosuch", "hdfs-native"), HdfsNativeDriver)
    assert isinstance(open_driver("hdfs://nn/a"), HdfsNativeDriver)
    odd = f"file://{tmp_path}/a?driver=hdfs3"  # a question mark is a part of a file's name
    assert isinstance(open_driver(odd), LocalDriver)
    assert set(DRIVERS) == {"file", "hdfs-native", "libhdfs", "hdfs3", "webhdfs", "fsspec"}


def test_the_user_of_hdfs_native_is_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADOOP_USER_NAME", "eva")
    open_driver("hdfs://eva@nn/a")
    with pytest.raises(CheckpointUnsupported, match=r"HADOOP_USER_NAME is eva.*driver=libhdfs"):
        open_driver("hdfs://nn/a?user=max")


# ---- libhdfs: the environment ------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """A machine with Java, libhdfs and Hadoop's jars, as far as `prepare` looks at them."""
    for name in ("java/lib/server/libjvm.so", "native/libhdfs.so", "jars/hadoop-common-3.3.6.jar", "jars/guava.jar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return {
        "PATH": str(tmp_path / "bin"),
        "JAVA_HOME": str(tmp_path / "java"),
        "ARROW_LIBHDFS_DIR": str(tmp_path / "native"),
        "CLASSPATH": str(tmp_path / "jars/*"),
    }


def test_wildcards_are_expanded_and_the_configuration_comes_first(site: dict[str, str], tmp_path: Path) -> None:
    prepare(site | {})  # leaves its argument's values alone for those who share them
    site["HADOOP_CONF_DIR"] = "/etc/hadoop"
    site["LIBHDFS_OPTS"] = "-Xmx1g"
    prepare(site)
    jars = tmp_path / "jars"
    assert site["CLASSPATH"].split(":") == ["/etc/hadoop", f"{jars}/guava.jar", f"{jars}/hadoop-common-3.3.6.jar"]
    assert site["LIBHDFS_OPTS"] == "-Xmx1g -Xrs"
    before = dict(site)
    prepare(site)
    assert site == before


def test_hadoop_is_asked_for_its_class_path(site: dict[str, str], tmp_path: Path) -> None:
    hadoop = tmp_path / "hadoop/bin/hadoop"
    hadoop.parent.mkdir(parents=True)
    hadoop.write_text('#!/bin/sh\necho "/conf:/jars/hadoop-client-api-3.3.6.jar  $1$2"\n')
    hadoop.chmod(0o755)
    del site["CLASSPATH"]
    site["HADOOP_HOME"] = str(tmp_path / "hadoop")
    prepare(site)
    assert site["CLASSPATH"] == "/conf:/jars/hadoop-client-api-3.3.6.jar  classpath--glob"
    hadoop.write_text("#!/bin/sh\nexit 3\n")
    del site["CLASSPATH"]
    with pytest.raises(CheckpointUnsupported, match="classpath --glob` failed"):
        prepare(site)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"JAVA_HOME": "/nonexistent"}, r"JAVA_HOME=/nonexistent has no lib/server/libjvm\.so"),
        ({"JAVA_HOME": ""}, "set JAVA_HOME"),
        ({"ARROW_LIBHDFS_DIR": "/nonexistent"}, r"no libhdfs\.so \(not in /nonexistent\): set ARROW_LIBHDFS_DIR"),
        ({"CLASSPATH": "/nonexistent/*"}, "hadoop classpath --glob"),
        ({"CLASSPATH": ""}, "hadoop classpath --glob"),
    ],
)
def test_what_libhdfs_lacks_is_named(site: dict[str, str], broken: dict[str, str], said: str) -> None:
    given = site | broken
    with pytest.raises(CheckpointUnsupported, match=said):
        prepare(given)
    assert given == site | broken


# ---- hdfs3 -------------------------------------------------------------------------------------------------------


def test_hdfs3_without_its_native_library_is_one_sentence() -> None:
    """In a process of its own: what was imported by then must not matter, nor what is imported stay behind here."""
    script = (
        "import collections.abc, sys\n"
        "before = dict(vars(collections))\n"
        "from checkpoints import CheckpointUnsupported\n"
        "from checkpoints.drivers import open_driver\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        open_driver('hdfs://nn:1/a?driver=hdfs3')\n"
        "    except CheckpointUnsupported as error:\n"
        "        print(error)\n"
        "assert vars(collections) == before, 'collections was changed'\n"
        "import hdfs3\n"
        "assert issubclass(hdfs3.HDFSMap, collections.abc.MutableMapping)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all("needs the native library libhdfs3.so" in line and "hdfs-native" in line for line in said)
    assert not hasattr(collections, "MutableMapping")


def test_hdfs3_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoints.drivers.hdfs3.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "hdfs3", raising=False)
    with pytest.raises(CheckpointUnsupported, match=r"pip install 'edl-elastic\[hdfs3\]'"):
        open_driver("hdfs://nn:1/a?driver=hdfs3")


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("writer", "scheme"), [(LocalWriter, "file"), (FsspecWriter, "memory")])
def test_no_single_write_comes_near_what_hdfs_refuses(
    writer: Any, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    sizes_bytes: list[int] = []
    write = writer.write
    limit_bytes = getattr(writer, "chunk_bytes", CHUNK_BYTES)

    def counting(self: Any, data: memoryview) -> None:
        sizes_bytes.append(len(data))
        write(self, data)

    monkeypatch.setattr(writer, "write", counting)
    one_tensor = {"w": torch.zeros(limit_bytes // 4 + 7)}
    save_checkpoint(f"{scheme}://{tmp_path}", TrainStatus(), state={"model": one_tensor})
    assert sum(sizes_bytes) > limit_bytes
    assert max(sizes_bytes) <= limit_bytes < 1 << 30
