"""States: what training keeps comes back equal, and nothing is ever unpickled."""

from __future__ import annotations

import math
import random
import secrets
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from checkpoints import StateNotSupported, TrainStatus, load_checkpoint, save_checkpoint
from checkpoints.tree import flatten, unflatten

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.integers(0, 3).map(lambda n: ("tensor", n)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.tuples(st.integers()), inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_any_nesting_of_plain_values_comes_back(value: Any) -> None:
    tree, tensors = flatten(value)
    assert tensors == {}
    assert unflatten(tree, tensors.__getitem__) == value


def round_trip(state: Any) -> Any:
    url = f"memory://{secrets.token_hex(6)}"
    save_checkpoint(url, TrainStatus(), state={"state": state})
    loaded = load_checkpoint(url)
    assert loaded is not None
    return loaded.state["state"]


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        schedule.step()
    return model, optimizer, schedule


def test_training_goes_on_exactly_from_a_loaded_state() -> None:
    model, optimizer, schedule = trained()
    url = f"memory://{secrets.token_hex(6)}"
    save_checkpoint(url, TrainStatus(), state={"model": model, "optimizer": optimizer, "schedule": schedule})
    loaded = load_checkpoint(url)
    assert loaded is not None
    other, other_optimizer, other_schedule = trained()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(loaded.state["model"])
    other_optimizer.load_state_dict(loaded.state["optimizer"])
    other_schedule.load_state_dict(loaded.state["schedule"])
    for net, opt, sched in ((model, optimizer, schedule), (other, other_optimizer, other_schedule)):
        torch.manual_seed(9)
        for _ in range(3):
            opt.zero_grad()
            net(torch.randn(2, 3, 8, 8)).square().mean().backward()
            opt.step()
            sched.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_grad_scaler_comes_back() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    scaler.scale(torch.ones(()))
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(round_trip(scaler))
    assert other.state_dict() == scaler.state_dict()


def test_random_states_come_back() -> None:
    numpy_state = np.random.RandomState(5).get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": numpy_state,
        "python": random.Random(4).getstate(),
    }
    found = round_trip(state)
    assert torch.equal(found["torch"], state["torch"])
    other = np.random.RandomState()
    other.set_state(found["numpy"])
    assert other.randint(1 << 30) == np.random.RandomState(5).randint(1 << 30)
    assert found["python"] == state["python"]


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0, 2), (2, 3, 4)], ids=str)
def test_every_dtype_and_shape_comes_back(shape: tuple[int, ...]) -> None:
    raw = {str(dtype): torch.randint(0, 2, (*shape, 16), dtype=torch.uint8) for dtype in DTYPES}
    state = {
        str(dtype): (raw[str(dtype)].view(dtype) if dtype != torch.bool else raw[str(dtype)].bool())[..., 0]
        for dtype in DTYPES
    }
    found = round_trip(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].reshape(-1).tolist() == value.reshape(-1).tolist()


def test_views_are_stored_as_their_values() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"t": base.t(), "slice": base[:, 1], "expanded": base[0, 1].expand(5), "conj": torch.tensor([1j]).conj()}
    found = round_trip(state)
    for name, value in state.items():
        assert torch.equal(found[name], value), name


def test_tied_weights_are_stored_once() -> None:
    shared = torch.randn(10)
    tree, tensors = flatten({"a": shared, "b": [shared, shared.clone()]})
    assert list(tensors) == ["a", "b.1"]
    found = unflatten(tree, tensors.__getitem__)
    assert found["a"] is found["b"][0]


def test_names_that_would_collide_are_kept_apart() -> None:
    found = round_trip({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, 1: torch.ones(2), "1": torch.zeros(2)})
    assert torch.equal(found["a.b"], torch.ones(1))
    assert torch.equal(found["a"]["b"], torch.zeros(1))
    assert torch.equal(found[1], torch.ones(2))
    assert torch.equal(found["1"], torch.zeros(2))


def test_special_values_come_back() -> None:
    found = round_trip(
        {"inf": math.inf, "nan": math.nan, "big": 1 << 200, "count": Counter({3: 2}), "np": np.float32(2)}
    )
    assert found["inf"] == math.inf
    assert math.isnan(found["nan"])
    assert found["big"] == 1 << 200
    assert found["count"] == Counter({3: 2})
    assert isinstance(found["count"], Counter)
    assert found["np"] == 2.0


def test_a_module_keeps_the_versions_of_its_buffers() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert round_trip(state)._metadata == state._metadata  # type: ignore[attr-defined]


class Custom:
    """Would run code if it were pickled."""


@pytest.mark.parametrize(
    "value",
    [
        Custom(),
        {1, 2},
        {"deep": [Custom()]},
        len,
        torch.float32,
        {Custom(): 1},
        np.array(["text"]),
        np.array([Custom()]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_needs_pickle_is_refused_and_leaves_nothing(value: Any, tmp_path: Path) -> None:
    with pytest.raises(StateNotSupported, match="state"):
        save_checkpoint(str(tmp_path), TrainStatus(), state={"fine": {"a": 1}, "bad": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [lambda: torch.eye(2).to_sparse(), lambda: torch.empty(2, device="meta")])
def test_tensors_without_plain_bytes_are_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(StateNotSupported, match="weight"):
        save_checkpoint(str(tmp_path), TrainStatus(), state={"model": {"weight": make()}})


def test_other_tools_can_open_the_weights(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    info = save_checkpoint(str(tmp_path), TrainStatus(), state={"model": model})
    assert info is not None
    opened = load_file(tmp_path / info.name / "model-00000-of-00001.safetensors")
    assert set(opened) == {"weight", "bias"}
    assert torch.equal(opened["weight"], model.weight)


@pytest.mark.parametrize("node", [[], {}, {"pickle": "x"}, {"bytes": "*"}, {"tensor": "none"}, {"dict": [[1]]}])
def test_a_tree_that_is_not_ours_is_refused(node: Any) -> None:
    with pytest.raises((ValueError, KeyError)):
        unflatten(node, dict[str, Any]().__getitem__)


def test_importing_and_listing_loads_no_torch_and_no_client(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path), TrainStatus(epoch_no=3), state={"model": {"w": torch.ones(2)}})
    code = (
        "import sys, checkpoints\n"
        "assert 'checkpoints.errors' not in sys.modules\n"
        f"found = checkpoints.verify({str(tmp_path)!r})\n"
        "assert found[0].status.epoch_no == 3 and found[0].problem is None, found\n"
        "heavy = {'torch', 'fsspec', 'hdfs_native', 'numpy', 'requests'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "checkpoints.save_checkpoint('memory://x', checkpoints.TrainStatus(), state={'note': {'a': 1}})\n"
        "assert checkpoints.load_checkpoint('memory://x').state == {'note': {'a': 1}}\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_every_public_name_is_there() -> None:
    import checkpoints

    for name in checkpoints.__all__:
        assert getattr(checkpoints, name) is not None
    assert set(checkpoints._HOME) == set(checkpoints.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = checkpoints.nothing
