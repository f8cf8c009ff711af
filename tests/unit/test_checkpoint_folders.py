"""What a checkpoint folder may be, who is kept in it, and what is said when it cannot be used."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from checkpoint_faults import FaultDriver, outage
from checkpoint_steps import newest, save

from checkpoints import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointExists,
    CheckpointManager,
    CheckpointNotFound,
    CheckpointPermission,
    CheckpointQuota,
    CheckpointUnavailable,
    CheckpointUnsupported,
    TrainStatus,
    collect,
    list_checkpoints,
    load_checkpoint,
    pin,
    preflight,
    unpin,
    verify,
)
from checkpoints.drivers import open_driver


def test_retention_keeps_n_and_none_keeps_all(tmp_path: Path) -> None:
    for step in range(5):
        save(str(tmp_path), step, keep=None)
    assert [info.number for info in list_checkpoints(str(tmp_path))] == [5, 4, 3, 2, 1]
    save(str(tmp_path), 5, keep=1)
    assert [info.number for info in list_checkpoints(str(tmp_path))] == [6]


def test_a_number_that_is_not_there_is_said(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    for ask in (load_checkpoint, verify):
        with pytest.raises(CheckpointNotFound, match="no checkpoint 9"):
            ask(str(tmp_path), checkpoint_no=9)


@pytest.mark.parametrize("options", [{"keep": 0}, {"driver_epoch": -1}])
def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        save(str(tmp_path / "new"), 1, **options)
    assert not (tmp_path / "new").exists()


def test_preflight_names_the_url_and_the_knob(tmp_path: Path) -> None:
    preflight(str(tmp_path / "deep" / "folder"))
    assert list((tmp_path / "deep" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError) as raised:
        preflight(str(tmp_path / "file"))
    assert str(tmp_path / "file") in str(raised.value)
    assert "EDL_CHECKPOINT_PATH" in str(raised.value)
    with pytest.raises(CheckpointPermission, match="MY_KNOB"):
        preflight(
            "/proc/nothing/here", driver=FaultDriver(open_driver(str(tmp_path)), 1, error=no_right), knob="MY_KNOB"
        )


def no_right() -> BaseException:
    return CheckpointPermission("not yours")


@pytest.mark.parametrize(
    ("url", "driver", "said"),
    [
        ("", None, "URL is empty"),
        ("nosuchscheme://x/y", None, "nosuchscheme"),
        ("file://host/path", None, "names a host"),
        ("webhdfs:///path", None, "no host"),
        ("/tmp/x", "nosuchdriver", "choose one of file, hdfs-native, libhdfs, hdfs3, webhdfs, fsspec"),
    ],
)
def test_an_url_that_no_driver_serves_gets_one_sentence(url: str, driver: str | None, said: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=said):
        preflight(url, driver=driver)


@pytest.mark.parametrize(
    ("package", "url", "extra"),
    [("hdfs_native", "hdfs://h:1/x", "hdfs"), ("fsspec.implementations.webhdfs", "webhdfs://h:1/x", "webhdfs")],
)
def test_a_missing_package_is_named(package: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(CheckpointUnsupported, match=rf"pip install 'edl-elastic\[{extra}\]'"):
        load_checkpoint(url)


def test_a_disk_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("os.link", refuse)
    save(str(tmp_path), 1)
    assert newest(str(tmp_path)).status.global_step == 1
    driver = open_driver(str(tmp_path))
    with pytest.raises(CheckpointExists):
        driver.write_once(f"{newest(str(tmp_path)).info.name}/manifest.json", b"second")
    assert newest(str(tmp_path)).skipped == ()


def test_pins_hold_until_they_are_taken_away(tmp_path: Path) -> None:
    url = str(tmp_path)
    save(url, 1)
    assert pin(url, 1) == pin(url, 1) == list_checkpoints(url)[0].name
    for step in (2, 3, 4):
        save(url, step, keep=2)
    assert [(info.number, info.pinned) for info in list_checkpoints(url)] == [(4, False), (3, False), (1, True)]
    assert collect(url, 1) == collect(url, 1)
    assert [item.attempt.number for item in collect(url, 1, dry_run=False)] == [3]
    unpin(url, list_checkpoints(url)[-1].name)
    assert [item.attempt.number for item in collect(url, 1, dry_run=False)] == [1]
    for wrong in (9, "ckpt-00000009-e0-s9-0123456789ab", "notes"):
        with pytest.raises(CheckpointNotFound, match="there is no checkpoint"):
            pin(url, wrong)
    (tmp_path / save(url, 5).name / "manifest.json").unlink()
    with pytest.raises(CheckpointDamaged, match="cannot be pinned"):
        pin(url, 5)


def test_a_path_object_names_a_folder(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as checkpoints:
        checkpoints.save(TrainStatus(global_step=1), state={"a": 1})
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded is not None
    assert loaded.info.url == list_checkpoints(tmp_path / "run")[0].url == str(tmp_path / "run")


@pytest.mark.parametrize("url", ["hdfs:/nn:8020/run", "s3:/bucket/run", Path("hdfs://nn:8020/run")])
def test_an_url_that_lost_a_slash_is_not_taken_for_a_folder(url: str | Path) -> None:
    with pytest.raises(CheckpointUnsupported, match="two slashes"):
        CheckpointManager(url)


def test_a_file_in_place_of_the_folder_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    asks = (load_checkpoint, list_checkpoints, lambda url: CheckpointManager(url).load(), lambda url: collect(url, 1))
    for ask in asks:
        with pytest.raises(CheckpointUnsupported, match="is a file"):
            ask(str(tmp_path / "file"))


@pytest.mark.parametrize("error", [CheckpointQuota, CheckpointPermission])
@pytest.mark.parametrize("operation", ["write", "write_once"])
def test_a_save_that_was_refused_leaves_no_room_taken(
    tmp_path: Path, error: type[CheckpointError], operation: str
) -> None:
    url = str(tmp_path)
    save(url, 1)
    clean = FaultDriver(open_driver(url))
    save(url, 2, clean)
    places = [n for n, name in enumerate(clean.operations) if name.startswith(f"{operation} ckpt")]
    for fail_at in places:
        with pytest.raises(error):
            save(url, 3, FaultDriver(open_driver(url), fail_at, error=lambda: error("refused")))
        assert [info.global_step for info in list_checkpoints(url)] == [2, 1]
    assert places


def test_an_outage_leaves_what_was_written_for_the_next_save_to_collect(tmp_path: Path) -> None:
    url = str(tmp_path)
    save(url, 1)
    clean = FaultDriver(open_driver(url))
    save(url, 2, clean)
    fail_at = next(n for n, name in enumerate(clean.operations) if name.startswith("write ckpt"))
    away = FaultDriver(open_driver(url), fail_at, error=outage, lasting=True)
    with pytest.raises(CheckpointUnavailable):
        save(url, 3, away)
    assert not [name for name in away.operations if name.startswith("remove_tree")], "nothing is asked of what is away"
    save(url, 4)
    assert [info.global_step for info in list_checkpoints(url)] == [4, 2, 1]
