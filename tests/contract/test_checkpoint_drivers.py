"""One suite for every driver: what the saver and the loader rely on."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkpoints import (
    CheckpointExists,
    CheckpointNotFound,
    CheckpointUnsupported,
    TrainStatus,
    list_checkpoints,
    load_checkpoint,
    preflight,
    save_checkpoint,
    verify,
)
from checkpoints.drivers import Driver, open_driver
from checkpoints.drivers.base import CHUNK_BYTES, read_file

KINDS = [
    "file",
    "memory",
    "fsspec-file",
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
            start.wait(10)
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
    if kind == "libhdfs":
        assert code == 5  # no JVM survives a fork: the child is told so at once
        return
    assert code == 0
    assert read_file(driver, "child", 10) == b"child"
