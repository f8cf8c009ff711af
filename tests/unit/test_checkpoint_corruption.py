"""Ten thousand random corruptions of manifest and shards: never a wrong load, never an error without an explanation."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
import torch
from checkpoint_memory import MemoryDriver
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import CheckpointDamaged, TrainStatus, load_checkpoint, save_checkpoint

EXAMPLES, CORRUPTIONS_EACH = 400, 25


def two_checkpoints() -> MemoryDriver:
    driver = MemoryDriver()
    for step in (1, 2):
        state = {"model": {"w": torch.full((40,), step)}, "optimizer": {"step": step, "note": "é"}}
        save_checkpoint("folder", TrainStatus(global_step=step), state=state, driver=driver)
    return driver


GOOD = two_checkpoints()
OLD, NEW = sorted(folder for folder in GOOD.folders if folder)


def corrupted(files: dict[str, bytes], rng: random.Random, path: str) -> None:
    """One accident to one file: cut, emptied, gone, exchanged with another, or some bytes changed, added or lost."""
    data = bytearray(files[path])
    kind = rng.randrange(8)
    at = rng.randrange(len(data) or 1)
    if kind == 0:
        del files[path]
        return
    if kind == 1:
        data = data[:at]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.randint(1, 8))
    elif kind == 3:
        del data[at : at + rng.randint(1, 8)]
    elif kind == 4:
        data = bytearray(files[rng.choice(sorted(files))])
    elif kind == 5:
        data[at : at + 8] = bytes(8)
    elif data:
        data[at] ^= 1 << rng.randrange(8)
    files[path] = bytes(data)


def check(driver: MemoryDriver, damaged: set[str]) -> None:
    said = ""
    try:
        loaded = load_checkpoint("folder", driver=driver)
    except CheckpointDamaged as error:
        loaded, said = None, str(error)
    if said:
        assert damaged == {OLD, NEW}
        assert "can be used" in said
        assert OLD in said or NEW in said
        return
    if loaded is None:
        # Both have lost their manifests: saves that never finished.
        assert not any(path.endswith("/manifest.json") for path in driver.files)
        return
    step = loaded.status.global_step
    assert loaded.info.name == {1: OLD, 2: NEW}[step]
    assert torch.equal(loaded.state["model"]["w"], torch.full((40,), step))
    assert loaded.state["optimizer"] == {"step": step, "note": "é"}
    # An accident may change nothing that counts: the white space of a manifest's JSON.
    harmless = all(
        driver.files.get(path) == GOOD.files[path]
        for path in GOOD.files
        if path.startswith(f"{NEW}/") and path.endswith("s")
    )
    assert step == (2 if NEW not in damaged else 1) or (step == 2 and harmless)
    assert all(skip.reason for skip in loaded.skipped)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Ten thousand warnings prove nothing."""
    logger = logging.getLogger("checkpoints")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([[NEW], [NEW], [NEW, OLD]]))
def test_no_corruption_loads_wrong(seed: int, victims: list[str]) -> None:
    rng = random.Random(seed)
    for _ in range(CORRUPTIONS_EACH):
        files = dict(GOOD.files)
        for victim in victims:
            corrupted(files, rng, rng.choice(sorted(path for path in files if path.startswith(victim))))
        damaged = {
            path.partition("/")[0] for path, data in GOOD.files.items() if files.get(path) != data and "/" in path
        }
        driver = MemoryDriver(files)
        driver.folders |= {OLD, NEW}
        check(driver, damaged)
