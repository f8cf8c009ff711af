"""edl ckpt on local folders: what is shown, what is changed, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from checkpoints import CheckpointDamaged, Keep, TrainStatus, load_checkpoint, save_checkpoint
from checkpoints.drivers.local import LocalDriver
from checkpoints.layout import AttemptName
from checkpoints.retention import Condition, Found, collectable, why_kept
from checkpoints.transfer import copy_checkpoint
from jobserver.cli.ckpt import COMMANDS
from jobserver.cli.main import edl

ROOT = Path(__file__).parents[2]
SHARD = "model-00000-of-00001.safetensors"


def run(*arguments: object) -> Result:
    """`edl ckpt ...`"""
    return CliRunner().invoke(edl, ["ckpt", *map(str, arguments)])


def said(result: Result, code: int, *words: str) -> str:
    """The one line of an error, with the exit code and without a traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.output
    for word in words:
        assert word in lines[0]
    return lines[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("ckpt-"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints, numbers 1 to 3 with accuracies 1, 9 and 2."""
    for step, accuracy in enumerate((1.0, 9.0, 2.0)):
        status = TrainStatus(epoch_no=step, global_step=step, user={"accuracy": accuracy})
        state = {"model": {"w": torch.full((100,), step), "layer": {"b": torch.ones(3)}}, "optimizer": {"step": step}}
        save_checkpoint(str(tmp_path / "run"), status, state=state, keep=None)
    return tmp_path / "run"


def test_every_command_explains_itself_with_an_example() -> None:
    overview = run("--help").output
    for name in COMMANDS:
        assert f"edl ckpt {name} " in overview
        assert run(name, "--help").exit_code == 0


def test_ls_and_show_say_what_is_there(folder: Path) -> None:
    listed = json.loads(run("ls", folder, "--json").stdout)["checkpoints"]
    assert [(row["number"], row["condition"], row["epoch"]) for row in listed] == [
        (3, "valid", 2), (2, "valid", 1), (1, "valid", 0),
    ]  # fmt: skip
    assert listed[0]["name"] in run("ls", folder).stdout
    newest = json.loads(run("show", folder, "--json").stdout)
    assert (newest["number"], newest["status"]["user"]) == (3, {"accuracy": 2.0})
    assert [shard["name"] for shard in newest["shards"]] == [SHARD, "optimizer-00000-of-00001.safetensors"]
    by_name = run("show", folder, newest["name"]).stdout
    assert "status.global_step:" in by_name
    assert SHARD in by_name
    assert json.loads(run("show", folder, 1, "--json").stdout)["number"] == 1
    said(run("show", folder, 9), 1, "no checkpoint 9", str(folder))


def test_a_folder_without_checkpoints_is_said(tmp_path: Path) -> None:
    for command in ("ls", "verify"):
        result = run(command, tmp_path / "none")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "there are no checkpoints" in result.stderr
    said(run("show", tmp_path / "none"), 1, "no valid checkpoint")


def test_verify_reads_everything(folder: Path) -> None:
    assert run("verify", folder).exit_code == 0
    victim = folder / names(folder)[1] / SHARD
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert run("ls", folder).exit_code == 0  # sizes are as they were
    result = run("verify", folder, "--jobs", "3", "--json")
    said(result, 1, "1 of 3", names(folder)[1], "checksum")
    assert [row["condition"] for row in json.loads(result.stdout)["checkpoints"]] == ["valid", "damaged", "valid"]
    assert run("verify", folder, 3).exit_code == 0
    said(run("verify", folder, 2), 1, "1 of 1")
    (folder / names(folder)[0] / "manifest.json").unlink()
    assert run("verify", folder, 3).exit_code == 0
    said(run("verify", folder, 1), 1, "no manifest")


def test_an_outage_in_mid_verify_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: LocalDriver, path: str) -> Any:
        raise ConnectionError("the disk went away")

    driver = LocalDriver(str(folder))
    kept = driver.open_read
    monkeypatch.setattr(
        LocalDriver, "open_read", lambda self, path: kept(path) if "manifest" in path else away(self, path)
    )
    result = run("verify", folder)
    said(result, 1, "the disk went away")
    assert "damaged" not in result.output


def test_a_pinned_one_is_kept_until_it_is_unpinned(folder: Path) -> None:
    assert "pinned ckpt-00000001" in run("pin", folder, 1).stdout
    assert [row["pinned"] for row in json.loads(run("ls", folder, "--json").stdout)["checkpoints"]] == [
        False,
        False,
        True,
    ]
    assert run("gc", folder, "--keep", 1, "--yes").exit_code == 0
    assert [name[:13] for name in names(folder)] == ["ckpt-00000001", "ckpt-00000003"]
    assert run("unpin", folder, names(folder)[0]).exit_code == 0
    assert run("gc", folder, "--keep", 1, "--yes").exit_code == 0
    assert [name[:13] for name in names(folder)] == ["ckpt-00000003"]
    said(run("pin", folder, 7), 1, "no checkpoint 7")


def test_gc_is_a_dry_run_that_says_why(folder: Path) -> None:
    (folder / "ckpt-00000009-e0-s0-0123456789ab").mkdir()  # the remains of a save that died at the first step
    (folder / "ckpt-00000009-e0-s9-0123456789ab").mkdir()  # newer than everything: it may be at work
    result = run("gc", folder, "--keep", 1, "--best", 1, "--metric", "accuracy", "--json")
    told = {row["name"][5:18]: (row["action"], row["reason"]) for row in json.loads(result.stdout)["checkpoints"]}
    assert told["00000003-e0-s"] == ("kept", "among the last 1")
    assert told["00000002-e0-s"] == ("kept", "among the best 1 by accuracy")
    assert told["00000001-e0-s"][0] == "would go"
    by_name = {row["name"]: row["reason"] for row in json.loads(result.stdout)["checkpoints"]}
    assert by_name["ckpt-00000009-e0-s0-0123456789ab"] == "unfinished, and older than a valid checkpoint"
    assert "may be at work" in by_name["ckpt-00000009-e0-s9-0123456789ab"]
    assert len(names(folder)) == 5
    text = run("gc", folder, "--keep", 1)
    assert "would go" in text.stdout
    assert "--yes" in text.stderr
    assert len(names(folder)) == 5
    removed = json.loads(run("gc", folder, "--keep", 1, "--yes", "--json").stdout)["removed"]
    assert len(removed) == 3
    assert len(names(folder)) == 2


@pytest.mark.parametrize(
    "options", [["--keep", 0], ["--keep", 1, "--best", 1], ["--keep", 1, "--every-epochs", 0], ["--keep", "x"], []]
)
def test_wrong_rules_are_refused(folder: Path, options: list[object]) -> None:
    result = run("gc", folder, *options)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert len(names(folder)) == 3


def test_every_attempt_goes_or_has_a_reason_to_stay() -> None:
    attempts = [AttemptName(epoch, step, 1, "0123456789ab") for epoch in range(2) for step in range(3)]
    for shift in range(4):
        found = [
            Found(attempt, list(Condition)[(index + shift) % 4], TrainStatus(epoch_no=index), pinned=index == 3)
            for index, attempt in enumerate(attempts)
        ]
        for keep in (Keep(1), Keep(None), Keep(1, every_epochs=2), Keep(2, best=1, metric="nothing")):
            gone = {item.attempt for item in collectable(found, keep)}
            kept = why_kept(found, keep)
            assert set(kept) | gone == set(attempts)
            assert not set(kept) & gone
            assert all(kept.values())


# ---- cp ----------------------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_checkpoint(folder: Path, tmp_path: Path) -> None:
    result = run("cp", folder, f"file://{tmp_path}/copy", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["number"] == 3
    assert run("cp", folder, tmp_path / "copy", 1).exit_code == 0
    loaded, original = load_checkpoint(str(tmp_path / "copy")), load_checkpoint(str(folder))
    assert loaded is not None
    assert original is not None
    assert (loaded.status, loaded.info.name) == (original.status, original.info.name)
    assert torch.equal(loaded.state["model"]["w"], original.state["model"]["w"])
    for name in names(tmp_path / "copy"):
        for file in (tmp_path / "copy" / name).iterdir():
            assert file.read_bytes() == (folder / name / file.name).read_bytes()
    assert names(tmp_path / "copy") == [names(folder)[0], names(folder)[2]]


def test_a_copy_never_writes_over_anything(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert run("cp", folder, copy).exit_code == 0
    said(run("cp", folder, copy), 1, "already", "nothing was copied")
    said(run("cp", folder, f"{folder}/"), 2, "same folder")
    (copy / names(copy)[0] / "manifest.json").unlink()
    said(run("cp", folder, copy), 1, "unfinished copy", "--restart")
    assert run("cp", folder, copy, "--restart").exit_code == 0
    assert run("verify", copy, 3).exit_code == 0
    said(run("cp", folder, copy, 9), 1, "no checkpoint 9")
    said(run("cp", tmp_path / "none", copy), 1, "no valid checkpoint")


def test_a_damaged_original_is_not_copied(folder: Path, tmp_path: Path) -> None:
    victim = folder / names(folder)[2] / SHARD
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    said(run("cp", folder, tmp_path / "copy"), 1, SHARD, "checksum")
    assert names(tmp_path / "copy") == []


def test_a_copy_that_does_not_read_back_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    class Lossy(LocalDriver):
        def open_read(self, path: str) -> Any:
            if path.endswith(SHARD):
                data = bytearray((self._root / path).read_bytes())
                (self._root / path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            return super().open_read(path)

    with pytest.raises(CheckpointDamaged, match="checksum"):
        copy_checkpoint(str(folder), "lossy", target_driver=Lossy(str(tmp_path / "copy")))
    assert names(tmp_path / "copy") == []


# ---- export ------------------------------------------------------------------------------------------------------


def test_exported_weights_load_into_the_model(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(3, 4)
            self.norm = torch.nn.BatchNorm1d(4)
            self.second = torch.nn.Linear(3, 4)
            self.second.weight = self.first.weight

    model, other = Tied(), Tied()
    save_checkpoint(str(tmp_path / "run"), TrainStatus(), state={"model": model, "extra": {"n": 5, "t": torch.ones(1)}})
    target = tmp_path / "model.safetensors"
    assert "wrote 9 tensors" in run("export", tmp_path / "run", target).stdout
    weights = load_file(target)
    assert set(weights) == set(model.state_dict())
    other.load_state_dict(weights)
    assert all(torch.equal(mine, model.state_dict()[name]) for name, mine in other.state_dict().items())
    said(run("export", tmp_path / "run", target), 1, "is there already", "--force")
    result = run("export", tmp_path / "run", target, "--force", "--state", "extra", "--json")
    done = json.loads(result.stdout)
    assert (done["tensors"], done["left_out"], done["size_bytes"]) == (1, ["n"], target.stat().st_size)
    assert set(load_file(target)) == {"t"}
    said(run("export", tmp_path / "run", tmp_path / "x", "--state", "nothing"), 1, "it has model, extra")
    said(run("export", tmp_path / "run", tmp_path / "no" / "x"), 1, str(tmp_path / "no" / "x"))


def test_damaged_weights_are_not_exported(folder: Path, tmp_path: Path) -> None:
    victim = folder / names(folder)[2] / SHARD
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    said(run("export", folder, tmp_path / "out"), 1, "checksum")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert run("export", folder, tmp_path / "out", 2).exit_code == 0


# ---- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ls", "show", "verify", "pin", "unpin", "gc", "cp", "export"])
def test_a_wrong_url_is_one_line(command: str, tmp_path: Path) -> None:
    more: dict[str, list[object]] = {"pin": [1], "unpin": [1], "gc": ["--keep", 1], "cp": [tmp_path]}
    more["export"] = [tmp_path / "x"]
    said(run(command, "hdfs://nn/x?drvr=libhdfs", *more.get(command, [])), 2, "unknown option 'drvr'", "driver")


def test_an_outage_is_one_line() -> None:
    said(run("ls", "hdfs://127.0.0.1:1/x"), 1, "127.0.0.1:1", "check that the file system is up")


def test_they_work_where_torch_is_not_installed(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from click.testing import CliRunner\n"
        "from jobserver.cli.main import edl\n"
        "url, other = sys.argv[1:]\n"
        "for line in ('ls URL', 'show URL', 'verify URL', 'pin URL 1', 'unpin URL 1', 'gc URL --keep 2 --yes',\n"
        "             'cp URL OTHER', 'export URL OTHER/model.safetensors'):\n"
        "    words = line.replace('URL', url).replace('OTHER', other).split()\n"
        "    result = CliRunner().invoke(edl, ['ckpt', *words])\n"
        "    assert result.exit_code == 0, (line, result.output, result.exception)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "other")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "other/model.safetensors").exists()
