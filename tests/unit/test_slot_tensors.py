"""Tensors of a slot are made once and handed out again, but never while anything refers to what was handed out."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.io_messages import NO_SLOT
from distill.ring import PAGE_BYTES, Ring, Slots
from distill.slot_batches import Filling, InSlot, restore
from distill.slot_tensors import SlotTensors

FLOATS = InSlot(torch.float32, (2, 3), PAGE_BYTES)


@pytest.fixture
def ring() -> Any:
    ring = Ring(1, 1 << 16)
    yield ring
    ring.close()


def test_a_slot_is_free_when_the_last_view_of_it_is_gone(ring: Ring) -> None:
    slots, tensors = Slots(ring), SlotTensors(ring.slot(0))
    for _ in range(3):
        slot = slots.take()
        nest = Filling(ring.slot(slot)).store((torch.arange(6.0).reshape(2, 3), "name", [torch.tensor([1, 2]).numpy()]))
        tensors.renew()
        batch = restore(tensors, nest)
        slots.lend(slot, tensors)
        assert slots.take() == NO_SLOT
        row = batch[0][1]  # a view of a view
        numbers = batch[2][0]
        assert batch[1] == "name"
        del batch
        gc.collect()
        assert slots.free == 0
        assert row.tolist() == [3.0, 4.0, 5.0]
        del row
        assert slots.free == 0
        assert numbers.tolist() == [1, 2]
        del numbers
        assert slots.take() == slot
        slots.give_back(slot)


def is_free(tensors: SlotTensors) -> bool:  # asked anew each time, which mypy does not see of a property
    return tensors.free


def graph(tensor: Tensor) -> Any:
    return (tensor * torch.ones(2, 3, requires_grad=True)).sum()


def dlpack(tensor: Tensor) -> Any:
    return tensor.__dlpack__()


KEEPERS: list[Callable[[Tensor], Any]] = [
    lambda tensor: tensor,
    lambda tensor: tensor[0, 1:],
    lambda tensor: tensor.detach(),
    lambda tensor: tensor.data,
    lambda tensor: tensor.t(),
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor.numpy()[1:],
    lambda tensor: memoryview(tensor.numpy().data),
    lambda tensor: torch.from_numpy(tensor.numpy()),
    lambda tensor: tensor.untyped_storage(),
    lambda tensor: torch.nn.Parameter(tensor),
    lambda tensor: torch.utils.dlpack.from_dlpack(tensor),
    lambda tensor: [{"deep": (tensor,)}],
    graph,
    dlpack,
]


@pytest.mark.parametrize("keep", KEEPERS)
def test_whatever_keeps_the_memory_keeps_the_slot(ring: Ring, keep: Callable[[Tensor], Any]) -> None:
    tensors = SlotTensors(ring.slot(0))
    assert is_free(tensors)
    for _ in range(2):
        kept = keep(tensors[FLOATS])
        gc.collect()
        assert not is_free(tensors)
        del kept
        gc.collect()
        assert is_free(tensors)


def test_what_is_done_to_a_tensor_is_not_seen_in_the_next(ring: Ring) -> None:
    tensors = SlotTensors(ring.slot(0))
    first = tensors[FLOATS]
    first.fill_(1.0)
    first.requires_grad_()
    (first * 2).sum().backward()  # type: ignore[no-untyped-call]
    del first
    second = tensors[FLOATS]
    assert second.grad is None
    assert not second.requires_grad
    second.unsqueeze_(0)
    del second
    assert is_free(tensors)
    assert tensors[FLOATS].shape == (2, 3)
    assert tensors[FLOATS].tolist() == [[1.0] * 3] * 2


def test_tensors_of_inference_mode_may_be_trained_with(ring: Ring) -> None:
    with torch.inference_mode():
        tensors = SlotTensors(ring.slot(0))
        assert float(tensors[FLOATS].sum()) == 0
    weight = torch.ones(2, 3, requires_grad=True)
    (tensors[FLOATS].fill_(3.0) * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [[3.0] * 3] * 2


def test_memory_that_was_moved_away_is_the_slot_again(ring: Ring) -> None:
    tensors = SlotTensors(ring.slot(0))
    moved = tensors[FLOATS]
    moved.share_memory_()  # type: ignore[no-untyped-call]  # what a queue of torch.multiprocessing does
    moved.fill_(5.0)
    assert not is_free(tensors)
    del moved
    assert is_free(tensors)
    tensors.renew()
    Filling(ring.slot(0)).store(torch.arange(6.0).reshape(2, 3))
    assert tensors[FLOATS].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_many_layouts_are_forgotten_again(ring: Ring) -> None:
    tensors = SlotTensors(ring.slot(0))
    kept = tensors[FLOATS]
    for rows in range(1, 100):
        assert tensors[InSlot(torch.uint8, (rows, 8), PAGE_BYTES)].shape == (rows, 8)
    assert not is_free(tensors)
    del kept
    assert is_free(tensors)
