"""States as people have them: odd tensors, enumerations, schedulers, and what is said of what cannot be stored."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_memory import at
from click.testing import CliRunner
from safetensors.torch import load_file

from checkpoints import (
    CheckpointManager,
    CheckpointMismatch,
    StateNotSupported,
    TrainStatus,
    load_checkpoint,
    save_checkpoint,
)
from jobserver.cli.main import edl


def round_trip(**state: Any) -> dict[str, Any]:
    url = f"memory://{secrets.token_hex(6)}"
    save_checkpoint(url, TrainStatus(), state=state)
    loaded = load_checkpoint(url)
    assert loaded is not None
    return loaded.state


class Color(str, enum.Enum):  # noqa: UP042 - as people wrote them before StrEnum
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def test_enumerations_come_back_as_their_values() -> None:
    found = round_trip(state={"color": Color.RED, "level": Level.HIGH, Color.RED: 1})["state"]
    assert found == {"color": "red", "level": 3, "red": 1}


def test_views_of_one_memory_that_differ_in_a_bit_are_kept_apart() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    views = {"imag": value.imag, "negative": value.conj().imag, "value": value, "conj": value.conj()}
    found = round_trip(state=views)["state"]
    for name, view in views.items():
        assert torch.equal(found[name], view), name


def test_a_tensor_may_have_the_name_that_the_format_keeps_for_itself(tmp_path: Path) -> None:
    state = {"__metadata__": torch.ones(2), "a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, "a.b#2": torch.ones(3)}
    found = round_trip(model=state)["model"]
    assert torch.equal(found["__metadata__"], torch.ones(2))
    save_checkpoint(tmp_path / "run", TrainStatus(), state={"model": state})
    result = CliRunner().invoke(edl, ["ckpt", "export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    weights = load_file(tmp_path / "out")
    assert sorted(value.numel() for value in weights.values()) == [1, 1, 2, 3]
    assert torch.equal(weights["a.b"], torch.ones(1))


@dataclass
class Settings:
    rate: float = 0.1


class Wrapped(torch.Tensor):
    """A tensor whose elements are elsewhere, as those of DTensor are."""

    @staticmethod
    def __new__(cls, elements: torch.Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(cls, elements.shape, dtype=elements.dtype)
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(str(function))


class Marked(torch.nn.Parameter):
    """A parameter that only has another name."""


def circle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dataclass": (Settings, "Settings cannot be stored without pickling"),
    "lambda": (lambda: lambda: 1, "function cannot be stored"),
    "set": (lambda: {1}, "set cannot be stored"),
    "circle": (circle, "holds itself"),
    "long integer": (lambda: 1 << 20_000, "integer of 20001 bits"),
    "wrapper": (lambda: Wrapped(torch.ones(2)), "a Wrapped"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "torch.sparse_coo"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged), "jagged"),
    "lazy": (lambda: torch.nn.parameter.UninitializedParameter(), "UninitializedParameter"),
    "meta": (lambda: torch.empty(2, device="meta"), "on meta"),
    "complex128": (lambda: torch.ones(1, dtype=torch.complex128), "torch.complex128"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("async_save", [True, False])
def test_what_is_refused_is_named_with_its_place(tmp_path: Path, kind: str, async_save: bool) -> None:
    make, said = REFUSED[kind]
    with (
        CheckpointManager(tmp_path, async_save=async_save) as checkpoints,
        pytest.raises(StateNotSupported, match=rf"state trainer\.parts\.0.*{said}"),
    ):
        checkpoints.save(at(1), trainer={"parts": [make()]})
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_refused_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateNotSupported, match="state settings: Settings cannot be stored"):
        save_checkpoint(tmp_path, TrainStatus(), state={"settings": Settings()})


def test_a_parameter_of_another_class_is_its_elements() -> None:
    found = round_trip(state={"p": Marked(torch.ones(3))})["state"]["p"]
    assert type(found) is torch.Tensor
    assert torch.equal(found, torch.ones(3))


def test_a_state_as_deep_as_may_be_saved_can_be_loaded() -> None:
    state: Any = torch.ones(1)
    for _ in range(100):
        state = [state]
    found = round_trip(state=state)["state"]
    for _ in range(100):
        (found,) = found
    assert torch.equal(found, torch.ones(1))
    with pytest.raises(StateNotSupported, match="more than 100 levels"):
        round_trip(state=[state, [[state]]])


def schedules(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    lr = torch.optim.lr_scheduler
    return {
        "lambda": lr.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        "cosine": lr.CosineAnnealingWarmRestarts(optimizer, 3),
        "cycle": lr.OneCycleLR(optimizer, 0.1, total_steps=20),
        "plateau": lr.ReduceLROnPlateau(optimizer),
        "cyclic": lr.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False, scale_fn=lambda x: x),
        "sequential": lr.SequentialLR(optimizer, [lr.ConstantLR(optimizer), lr.ExponentialLR(optimizer, 0.9)], [2]),
        "chained": lr.ChainedScheduler([lr.ConstantLR(optimizer), lr.ExponentialLR(optimizer, 0.9)]),
    }


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), amsgrad=True),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, history_size=3),
    "rprop": lambda p: torch.optim.Rprop(p),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_and_schedule_comes_back(kind: str, tmp_path: Path) -> None:
    def built() -> tuple[Any, Any, dict[str, Any]]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).to(torch.float64)
        optimizer = OPTIMIZERS[kind](model.parameters())
        return model, optimizer, schedules(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))

    def step(model: Any, optimizer: Any) -> None:
        def loss() -> Any:
            optimizer.zero_grad()
            value = model(torch.ones(4, 3, dtype=torch.float64)).square().mean()
            value.backward()
            return value

        optimizer.step(loss)

    model, optimizer, plans = built()
    step(model, optimizer)
    plans["plateau"].step(0.5)
    url = str(tmp_path)
    save_checkpoint(url, TrainStatus(), state={"model": model, "optimizer": optimizer, **plans})
    step(model, optimizer)
    other, other_optimizer, other_plans = built()
    CheckpointManager(url).load(model=other, optimizer=other_optimizer, **other_plans)
    step(other, other_optimizer)
    assert torch.equal(model.weight, other.weight)
    for name, plan in plans.items():
        assert str(other_plans[name].state_dict()) == str(plan.state_dict()), name


@pytest.mark.parametrize("local", [True, False], ids=["local", "elsewhere"])
def test_strict_means_the_same_names_also_where_weights_are_tied(tmp_path: Path, local: bool) -> None:
    class Pair(torch.nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            weight = torch.nn.Parameter(torch.rand(3))
            for name in names:
                setattr(self, name, weight)

    url = str(tmp_path) if local else f"memory://{secrets.token_hex(6)}"
    with CheckpointManager(url) as checkpoints:
        checkpoints.save(at(1), model=Pair("a", "b"))
        with pytest.raises(CheckpointMismatch, match=r"Unexpected key.*b"):
            checkpoints.load(model=Pair("a"))
        same = Pair("a", "b")
        checkpoints.load(model=same)
        assert same.a is same.b
        checkpoints.save(at(2), force=True, model=Pair("a"))
        with pytest.raises(CheckpointMismatch, match=r"Missing key.*b"):
            checkpoints.load(model=Pair("a", "b"))


def test_a_dict_is_not_emptied_for_what_does_not_fit_it(tmp_path: Path) -> None:
    settings = {"rate": 0.1}
    with CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(at(1), settings=[1, 2])
        with pytest.raises(CheckpointMismatch, match=r"settings.*a list, and a dict was given"):
            checkpoints.load(settings=settings)
    assert settings == {"rate": 0.1}


def test_weights_go_into_another_dtype_and_layout(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, TrainStatus(), state={"model": torch.nn.Conv2d(3, 4, 3)})
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    other: Any = torch.nn.Conv2d(3, 4, 3).to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    CheckpointManager(tmp_path).load(model=other)
    assert torch.equal(other.weight, saved.state["model"]["weight"].bfloat16())
    assert other.weight.is_contiguous(memory_format=torch.channels_last)
