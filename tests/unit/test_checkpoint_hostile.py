"""Folders that somebody else can write to: nothing outside is touched, nothing hangs or is run, all is explained."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_faults import FaultDriver
from checkpoint_memory import MemoryDriver
from checkpoint_steps import SHARD, newest, save
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointManager,
    CheckpointPermission,
    InvalidStatus,
    TrainStatus,
    collect,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from checkpoints.drivers import open_driver
from checkpoints.drivers.base import Entry, Reader
from checkpoints.layout import LARGEST, LATEST, MANIFEST, AttemptName, Manifest, Shard, checksum, parse_manifest
from jobserver.cli.main import edl

TOKEN = "0123456789ab"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


STRANGE: dict[str, Callable[[Path], None]] = {
    "pipe": make_pipe,
    "socket": make_socket,
    "device": make_device,
    "folder": Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("victim", [LATEST, MANIFEST, SHARD])
def test_what_is_no_plain_file_holds_nobody_and_is_no_outage(
    tmp_path: Path, kind: str, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    url = str(tmp_path)
    save(url, 1)
    bad = save(url, 2)
    path = tmp_path / (LATEST if victim == LATEST else f"{bad.name}/{victim}")
    path.unlink()
    STRANGE[kind](path)
    assert newest(url).status.global_step == (2 if victim == LATEST else 1)
    save(url, 3)
    assert newest(url).status.global_step == 3


def test_a_hint_that_must_not_be_read_is_no_reason_to_stop(tmp_path: Path) -> None:
    class Closed(FaultDriver):
        def open_read(self, path: str) -> Reader:
            if path == LATEST:
                raise CheckpointPermission("not yours")
            return super().open_read(path)

    save(str(tmp_path), 1)
    assert load_checkpoint(str(tmp_path), driver=Closed(open_driver(str(tmp_path)))) is not None


@pytest.mark.parametrize("hinted", [False, True])
def test_nothing_behind_a_link_is_read_or_removed(tmp_path: Path, hinted: bool) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    victim = save(str(theirs), 1)
    save(str(ours), 50)
    link = ours / victim.name
    link.symlink_to(theirs / victim.name)
    (ours / f"ckpt-00000009-e0-s2-{TOKEN}").symlink_to(theirs / victim.name)
    if hinted:
        (ours / LATEST).write_text(f"{victim.name}\n")
    assert len(list_checkpoints(str(ours))) == 1
    save(str(ours), 51, keep=1)
    collect(str(ours), 1, dry_run=False)
    driver = open_driver(str(ours))
    driver.remove(f"{victim.name}/{MANIFEST}")
    driver.remove_tree(f"{victim.name}/deeper")
    with pytest.raises(CheckpointError, match="symbolic link"):
        driver.open_write(f"{victim.name}/more")
    assert newest(str(theirs)).skipped == ()
    assert link.is_symlink()


def test_a_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    save(str(tmp_path / "run"), 1)
    assert newest(str(tmp_path / "run")).status.global_step == 1


@pytest.mark.parametrize("forged", [AttemptName(LARGEST, 0, 1, TOKEN), AttemptName(0, 0, LARGEST, TOKEN)])
def test_a_forged_order_is_told_instead_of_saving_what_nobody_finds(tmp_path: Path, forged: AttemptName) -> None:
    save(str(tmp_path), 1)
    (tmp_path / str(forged)).mkdir()
    with CheckpointManager(tmp_path) as checkpoints:
        assert checkpoints.load() == TrainStatus(global_step=1)
        checkpoints.save(TrainStatus(global_step=2), state={"a": 1})
        with pytest.raises(InvalidStatus, match=rf"is not between 0 and.*{forged}.*remove it"):
            checkpoints.wait()
    (tmp_path / str(forged)).rmdir()
    assert save(str(tmp_path), 2).number == 2


def test_a_step_that_no_name_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidStatus, match="global_step"):
        save_checkpoint(str(tmp_path), TrainStatus(global_step=LARGEST + 1), state={})
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


def test_a_pickle_in_the_place_of_a_shard_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("run", 1)
    attempt, shards = open_up(read(tmp_path / "run"))
    torch.save({"w": Bomb()}, "torch.pt")
    for data in (pickle.dumps(Bomb()), Path("torch.pt").read_bytes()):
        shards[SHARD] = data
        with pytest.raises(CheckpointDamaged):
            load_checkpoint("folder", driver=sealed(attempt, shards))
    assert not Path("unpickled").exists()


def test_control_characters_of_a_manifest_do_not_reach_the_terminal(tmp_path: Path) -> None:
    attempt = AttemptName(0, 1, 1, TOKEN)
    escape = "\x1b[2J\x1b]0;owned\x07"
    status = TrainStatus(global_step=1, user={"note": escape}, ledger=escape, extra={escape: 1})
    folder = tmp_path / str(attempt)
    folder.mkdir()
    (folder / MANIFEST).write_bytes(Manifest(attempt, status, (), escape).to_bytes())
    for command in ("ls", "show", "verify"):
        result = CliRunner().invoke(edl, ["ckpt", command, str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output, command
        assert "\x07" not in result.output, command


# ---- files that are sealed with right checksums -------------------------------------------------------------------


def read(folder: Path) -> dict[str, bytes]:
    (attempt,) = folder.glob("ckpt-*")
    return {f"{attempt.name}/{file.name}": file.read_bytes() for file in attempt.iterdir()}


def open_up(files: dict[str, bytes]) -> tuple[AttemptName, dict[str, bytes]]:
    """The attempt and its shards by their names."""
    from checkpoints.layout import parse_attempt

    attempt = parse_attempt(next(iter(files)).partition("/")[0])
    assert attempt is not None
    return attempt, {path.partition("/")[2]: data for path, data in files.items() if not path.endswith(MANIFEST)}


def sealed(attempt: AttemptName, shards: dict[str, bytes]) -> MemoryDriver:
    """A folder with one checkpoint of these shards, whose manifest is right about every byte."""
    listed = tuple(Shard(name, len(data), checksum(data)) for name, data in shards.items())
    files = {f"{attempt}/{name}": data for name, data in shards.items()}
    manifest = Manifest(attempt, TrainStatus(global_step=attempt.global_step), listed, "now").to_bytes()
    assert parse_manifest(manifest, attempt).shards == listed
    return MemoryDriver({**files, f"{attempt}/{MANIFEST}": manifest})


def shard(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": [torch.ones(2), {"c": (1, None, 2.5, "x", b"y")}]}
VALUES: list[Any] = [
    None, True, -1, 0, 1, 1 << 31, 1 << 63, 1 << 200, 2.5, float("nan"), float("inf"), "", "x", "w", "F32", "pickle",
    [], {}, [[]], [-1], [0, 1 << 70], [1 << 62], [2, 3], [0, 24], ["w"], {"tensor": "w"}, {"tensor": ["w"]},
    {"list": 5}, {"dict": [["a"]]}, {"dict": [[{"list": []}, 1]]}, {"ordered": {}}, {"metadata": 1}, {"tuple": None},
    {"array": "b.0"}, {"float": "nan?"}, {"bytes": "****"}, {"bytes": 7}, {"counter": [["a", {"list": []}]]}, {"": 1},
    {"list": [], "metadata": 1}, [0] * 100,
]  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def altered(document: Any, rng: random.Random) -> Any:
    """The document with one value at a random place exchanged, removed or doubled."""
    document = copy.deepcopy(document)
    path = rng.choice(list(places(document)))
    if not path:
        return rng.choice(VALUES)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.randrange(4)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1 and isinstance(parent, list):
        parent.append(parent[path[-1]])
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(["w", "__metadata__", "dict", "tensor", "../../x", "\x1b", "b" * 300])] = parent.pop(path[-1])
    else:
        parent[path[-1]] = rng.choice(VALUES)
    return document


@pytest.fixture(scope="module")
def original() -> tuple[AttemptName, dict[str, Any], Any, bytes]:
    driver = MemoryDriver()
    save_checkpoint("folder", TrainStatus(global_step=1), state={"model": STATE}, driver=driver)
    attempt, shards = open_up(driver.files)
    data = shards[SHARD]
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return attempt, header, json.loads(header["__metadata__"]["edl.tree"]), data[8 + length :]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_sealed_nonsense_is_damage_and_never_a_traceback(
    original: tuple[AttemptName, dict[str, Any], Any, bytes], seed: int
) -> None:
    attempt, good, good_tree, data = original
    rng = random.Random(seed)
    for _ in range(20):
        header, tree = copy.deepcopy(good), good_tree
        if rng.random() < 0.5:
            tree = altered(tree, rng)
            header["__metadata__"]["edl.tree"] = json.dumps(tree)
        else:
            header = altered(header, rng)
        driver = sealed(attempt, {SHARD: shard(header, data)})
        model: dict[str, Any] = {"untouched": 1}
        for ask in (
            lambda driver=driver: load_checkpoint("folder", driver=driver),
            lambda driver=driver, model=model: CheckpointManager("folder", driver=driver).load(model=model),
        ):
            try:
                ask()
            except CheckpointError:
                assert model == {"untouched": 1}


@pytest.mark.parametrize(
    "tree",
    [
        '{"metadata": 1}',
        '{"list": [' * 400 + "1" + "]}" * 400,
        "[" * 100_000,
        '{"tensor": "w", "metadata": {"metadata": 1}}',
    ],
    ids=["no kind", "deep", "deeper", "no kind below"],
)
def test_trees_that_no_state_has_are_damage(original: Any, tree: str, caplog: pytest.LogCaptureFixture) -> None:
    attempt, good, _, data = original
    header = {**good, "__metadata__": {"edl.tree": tree}}
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointDamaged, match="cannot be read"):
        load_checkpoint("folder", driver=sealed(attempt, {SHARD: shard(header, data)}))
    assert str(attempt) in caplog.text


@pytest.mark.parametrize("shape", [[0, 1 << 62], [0, 1 << 70], [1] * 65, ["2", 3], [2.0, 3], [-2, -3], "23", {"2": 3}])
def test_shapes_that_no_tensor_has_are_damage(original: Any, shape: Any) -> None:
    attempt, good, _, data = original
    header = {**good, "w": {**good["w"], "shape": shape}}
    if shape and shape[:1] == [0] if isinstance(shape, list) else False:
        header = {"__metadata__": {"edl.tree": '{"tensor": "e"}'}}
        header["e"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        data = b""
    with pytest.raises(CheckpointDamaged):
        load_checkpoint("folder", driver=sealed(attempt, {SHARD: shard(header, data)}))


def test_a_header_that_says_exabytes_takes_no_memory(original: Any) -> None:
    attempt, _, _, _ = original
    for length in (1 << 62, (1 << 64) - 1, 101 << 20):
        data = struct.pack("<Q", length) + b"{}"
        with pytest.raises(CheckpointDamaged, match="header of"):
            load_checkpoint("folder", driver=sealed(attempt, {SHARD: data}))


def test_a_sparse_file_of_petabytes_is_told_and_takes_no_memory(tmp_path: Path, original: Any) -> None:
    class Sparse(MemoryDriver):
        def list_dir(self, path: str) -> list[Entry]:
            return [Entry(e.name, e.is_dir, 1 << 52) if e.name == SHARD else e for e in super().list_dir(path)]

    attempt, good, _, data = original
    head = shard(good, data)
    driver = Sparse(sealed(attempt, {SHARD: head}).files)
    (length,) = struct.unpack("<Q", head[:8])
    body = (1 << 52) - 8 - length
    header = {
        "__metadata__": {"edl.tree": '{"tensor": "w"}'},
        "w": {"dtype": "U8", "shape": [body], "data_offsets": [0, body]},
    }
    text = json.dumps(header).encode().ljust(length)
    assert len(text) == length
    driver.files[f"{attempt}/{SHARD}"] = struct.pack("<Q", length) + text
    listed = (Shard(SHARD, 1 << 52, checksum(b"")),)
    driver.files[f"{attempt}/{MANIFEST}"] = Manifest(attempt, TrainStatus(global_step=1), listed, "").to_bytes()
    with pytest.raises(CheckpointError, match="no memory for"):
        load_checkpoint("folder", driver=driver)


def test_a_shard_of_another_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    old, new = save(str(tmp_path), 2), save(str(tmp_path), 3)
    shutil.copy(tmp_path / old.name / SHARD, tmp_path / new.name / SHARD)
    assert newest(str(tmp_path)).status.global_step == 2
