"""One suite for every driver: what the saver and the loader rely on."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import fake_hdfs3
import pytest
import torch

from checkpoints import (
    CheckpointExists,
    CheckpointNotFound,
    CheckpointUnavailable,
    CheckpointUnsupported,
    TrainStatus,
    list_checkpoints,
    load_checkpoint,
    preflight,
    save_checkpoint,
    verify,
)
from checkpoints.checking import verify_folder
from checkpoints.drivers import Driver, open_driver
from checkpoints.drivers.base import CHUNK_BYTES, read_file
from checkpoints.transfer import copy_checkpoint

KINDS = [
    "file",
    "memory",
    "fsspec-file",
    "hdfs3",
    pytest.param("hdfs-native", marks=pytest.mark.integration),
    pytest.param("webhdfs", marks=pytest.mark.integration),
    pytest.param("libhdfs", marks=pytest.mark.integration),
    pytest.param("s3", marks=pytest.mark.integration),
]
#: A folder there is only a part of names: it is there while a file is in it.
OBJECT_STORES = ("memory", "s3")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "memory":
        return f"memory://{secrets.token_hex(6)}/job"
    if kind == "hdfs3":
        monkeypatch = request.getfixturevalue("monkeypatch")
        package = fake_hdfs3.package(tmp_path / "hdfs3")
        monkeypatch.setattr("checkpoints.drivers.hdfs3._package", lambda url: package)
        return "hdfs://namenode:8020/job?driver=hdfs3"
    if kind in ("file", "fsspec-file"):
        return f"file://{tmp_path}/job"
    base = str(request.getfixturevalue({"hdfs-native": "hdfs_url"}.get(kind, f"{kind}_url")))
    folder, question, options = base.partition("?")
    return f"{folder}/job{question}{options}"


@pytest.fixture
def driver(kind: str, url: str) -> Iterator[Driver]:
    driver = open_driver(url, "fsspec" if kind == "fsspec-file" else None)
    yield driver
    driver.close()


def write(driver: Driver, path: str, data: bytes) -> None:
    writer = driver.open_write(path)
    for start in range(0, len(data), CHUNK_BYTES):
        writer.write(memoryview(data)[start : start + CHUNK_BYTES])
    writer.commit()


def test_absence_is_said_as_not_found(driver: Driver) -> None:
    for ask in (driver.list_dir, driver.info):
        for path in ("", "nothing", "nothing/deeper"):
            with pytest.raises(CheckpointNotFound):
                ask(path)
    with pytest.raises(CheckpointNotFound):
        driver.open_read("nothing").readinto(memoryview(bytearray(1)))


def test_listing_shows_names_kinds_and_sizes(driver: Driver, kind: str) -> None:
    driver.make_dirs("folder/inner")
    write(driver, "folder/file", b"12345")
    if kind in OBJECT_STORES:
        write(driver, "folder/inner/file", b"1")
    found = {entry.name: entry for entry in driver.list_dir("folder")}
    assert set(found) == {"file", "inner"}
    assert (found["file"].is_dir, found["file"].size_bytes) == (False, 5)
    assert found["inner"].is_dir
    assert [entry.name for entry in driver.list_dir("")] == ["folder"]
    if kind not in OBJECT_STORES:
        assert driver.list_dir("folder/inner") == []
    assert (driver.info("folder/file").name, driver.info("folder/file").size_bytes) == ("file", 5)
    assert driver.info("folder").is_dir


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES + 3])
def test_what_is_written_is_read(driver: Driver, size_bytes: int) -> None:
    driver.make_dirs("")
    data = secrets.token_bytes(size_bytes)
    write(driver, "file", data)
    assert driver.info("file").size_bytes == size_bytes
    assert read_file(driver, "file", size_bytes) == data


def test_reading_stops_at_the_limit(driver: Driver) -> None:
    driver.make_dirs("")
    write(driver, "file", b"12345")
    with pytest.raises(ValueError, match="larger than 4"):
        read_file(driver, "file", 4)


def test_a_name_is_written_once(driver: Driver) -> None:
    driver.make_dirs("")
    driver.write_once("once", b"first")
    with pytest.raises(CheckpointExists):
        driver.write_once("once", b"second")
    with pytest.raises(CheckpointExists):
        driver.open_write("once")
    assert read_file(driver, "once", 10) == b"first"
    assert [entry.name for entry in driver.list_dir("")] == ["once"]


def test_a_removed_folder_is_not_made_again_by_a_late_manifest(driver: Driver, kind: str) -> None:
    if kind in OBJECT_STORES:
        return  # a folder there is only a part of names; the loader's check of sizes covers it
    driver.make_dirs("attempt")
    driver.remove_tree("attempt")
    with pytest.raises(CheckpointNotFound):
        driver.write_once("attempt/manifest.json", b"late")


def test_an_aborted_file_is_gone(driver: Driver) -> None:
    driver.make_dirs("")
    writer = driver.open_write("half")
    writer.write(memoryview(b"half"))
    writer.abort()
    with pytest.raises(CheckpointNotFound):
        driver.info("half")


def test_removing_is_fine_twice(driver: Driver, kind: str) -> None:
    driver.make_dirs("a/b")
    write(driver, "a/b/file", b"1")
    for _ in range(2):
        driver.remove("a/b/file")
        driver.remove_tree("a")
    if kind in OBJECT_STORES:
        write(driver, "other", b"")
    assert [entry.name for entry in driver.list_dir("")] == (["other"] if kind in OBJECT_STORES else [])


def test_making_a_folder_is_fine_twice(driver: Driver, kind: str) -> None:
    for _ in range(2):
        driver.make_dirs("a/b")
    if kind in OBJECT_STORES:
        write(driver, "a/b/file", b"")
    assert [entry.name for entry in driver.list_dir("a")] == ["b"]


def test_save_and_load(url: str, driver: Driver) -> None:
    preflight(url, driver=driver)
    assert load_checkpoint(url, driver=driver) is None
    for epoch in range(3):
        state = {"model": {"w": torch.full((2, 3), float(epoch))}, "rng": torch.get_rng_state()}
        status = TrainStatus(epoch_no=epoch, global_step=7 * epoch)
        save_checkpoint(url, status, state=state, keep=2, driver=driver)
    loaded = load_checkpoint(url, driver=driver)
    assert loaded is not None
    assert loaded.status == TrainStatus(epoch_no=2, global_step=14)
    assert torch.equal(loaded.state["model"]["w"], torch.full((2, 3), 2.0))
    assert torch.equal(loaded.state["rng"], torch.get_rng_state())
    assert [(info.number, info.problem) for info in list_checkpoints(url, driver=driver)] == [(3, None), (2, None)]
    assert [info.problem for info in verify(url, driver=driver)] == [None, None]
    assert all(not entry.name.startswith(".") for entry in driver.list_dir(""))


def test_two_savers_at_once_never_mix(url: str, kind: str, driver: Driver) -> None:
    chosen = "fsspec" if kind == "fsspec-file" else None
    start = threading.Barrier(2)
    failures: list[BaseException] = []

    def save(worker: int) -> None:
        state = {name: {"w": torch.full((1000,), worker)} for name in ("model", "optimizer")}
        try:
            start.wait(60)
            save_checkpoint(url, TrainStatus(global_step=5, user={"worker": worker}), state=state, driver=chosen)
        except BaseException as error:
            failures.append(error)

    savers = [threading.Thread(target=save, args=(worker,)) for worker in range(2)]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join()
    assert failures == []
    assert [info.problem for info in verify(url, driver=driver)] == [None, None]
    newest = [load_checkpoint(url, driver=driver) for _ in range(2)]
    assert newest[0] is not None
    assert newest[1] is not None
    assert newest[0].info == newest[1].info
    worker = newest[0].status.user["worker"]
    for name in ("model", "optimizer"):
        assert torch.equal(newest[0].state[name]["w"], torch.full((1000,), worker))


def test_a_forked_child_can_use_the_driver(url: str, kind: str, driver: Driver) -> None:
    if kind == "memory":
        return  # a child's memory is not its parent's
    driver.make_dirs("")
    write(driver, "file", b"parent")
    child = os.fork()
    if child == 0:
        try:
            good = read_file(driver, "file", 10) == b"parent"
            write(driver, "child", b"child")
            os._exit(0 if good else 3)
        except CheckpointUnsupported:
            os._exit(5)
        except BaseException:
            os._exit(4)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if kind in ("libhdfs", "hdfs3"):
        assert code == 5  # neither survives a fork: the child is told so at once
        return
    assert code == 0
    assert read_file(driver, "child", 10) == b"child"


def test_what_hdfs3_says_during_an_outage_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fake_hdfs3.package(tmp_path / "hdfs3")
    monkeypatch.setattr("checkpoints.drivers.hdfs3._package", lambda url: package)
    driver = open_driver("hdfs://a:1,b:2/job?driver=hdfs3&user=eva")
    driver.make_dirs("folder")
    write(driver, "file", b"1")
    given = driver._here().given  # type: ignore[attr-defined]
    assert (given["user"], given["host"]) == ("eva", given["dfs.nameservices"])
    package.HDFileSystem.away = True
    for ask in (driver.list_dir, driver.info, driver.open_read, driver.make_dirs, driver.remove, driver.remove_tree):
        with pytest.raises(CheckpointUnavailable):
            ask("file")
    with pytest.raises(CheckpointUnavailable):
        driver.write_once("other", b"1")


def test_hdfs3_looks_at_the_size_since_closing_tells_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fake_hdfs3.package(tmp_path / "hdfs3")
    monkeypatch.setattr("checkpoints.drivers.hdfs3._package", lambda url: package)
    driver = open_driver("hdfs://namenode/job?driver=hdfs3")
    driver.make_dirs("")
    writer = driver.open_write("file")
    writer.write(memoryview(b"12345"))
    monkeypatch.setattr(package.HDFileSystem, "info", lambda self, path: {"name": path, "kind": "file", "size": 3})
    with pytest.raises(CheckpointUnavailable, match="3 of 5 bytes"):
        writer.commit()


@pytest.mark.integration
def test_s3_makes_no_bucket_of_a_mistyped_name(s3_url: str) -> None:
    import s3fs

    with pytest.raises(CheckpointNotFound, match="edl-tets"):
        preflight("s3://edl-tets/job")
    assert "edl-tets" not in s3fs.S3FileSystem(skip_instance_cache=True).ls("")


@pytest.mark.integration
def test_an_s3_that_is_away_is_an_outage_within_seconds(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    begun = time.monotonic()
    with pytest.raises(CheckpointUnavailable):
        load_checkpoint(s3_url)
    assert time.monotonic() - begun < 30


@pytest.mark.integration
def test_a_checkpoint_travels_through_every_file_system(
    hdfs_url: str, webhdfs_url: str, libhdfs_url: str, s3_url: str, tmp_path: Path
) -> None:
    state = {"model": {"w": torch.randn(1_500_000)}, "optimizer": {"step": 7}}  # more than one chunk
    saved = save_checkpoint(str(tmp_path / "first"), TrainStatus(global_step=7), state=state)
    assert saved is not None
    name = saved.name
    through_jvm = libhdfs_url.replace("?", "/other?")  # its folder is the one of hdfs_url
    stops = [str(tmp_path / "first"), hdfs_url, webhdfs_url, through_jvm, s3_url, str(tmp_path / "last")]
    for source, target in pairwise(stops):
        assert copy_checkpoint(source, target).name == name
        with pytest.raises(CheckpointExists, match="already"):
            copy_checkpoint(source, target)
        assert [info.problem for info in verify_folder(target, jobs=2)] == [None]
    for file in (tmp_path / "first" / name).iterdir():
        assert file.read_bytes() == (tmp_path / "last" / name / file.name).read_bytes()
