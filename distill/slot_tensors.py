"""The trainer's tensors in a slot of the ring: made once, handed out for batch after batch.

To make a tensor of foreign memory takes longer than all else that the trainer does for a batch, so a slot keeps one for
each place in it and hands out others that share its storage: new objects, so that nothing a user does to one of them
(its shape, its gradient) is seen in the next batch. All views of them, NumPy's and those of an autograd graph included,
hold that storage too.

Invariant: `free` is True only when nothing but this object refers to the slot's memory. A raw address (data_ptr) is no
reference, as nowhere in torch.
"""

import math
import sys

import torch
from torch import Tensor

from distill.slot_batches import InSlot

#: batches of one loader have one layout, and another one for the last
_MOST_PLACES = 32
_uses = torch._C._storage_Use_Count


class SlotTensors:
    """Tensors in `memory`, a slot."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._bases: dict[InSlot, Tensor] = {}
        self._map()

    def _map(self) -> None:
        self._bases.clear()
        with torch.inference_mode(False):  # tensors of inference mode are of no use for training
            self._whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._address = self._whole.data_ptr()
        # There is one object of it in Python for all tensors: who keeps that is seen in its references.
        self._storage = self._whole.untyped_storage()
        self._references = sys.getrefcount(self._storage)
        self._handle = self._storage._cdata
        self._uses = _uses(self._handle)

    @property
    def free(self) -> bool:
        """Whether all that was handed out is gone."""
        own = self._uses + len(self._bases)
        return _uses(self._handle) == own and sys.getrefcount(self._storage) == self._references

    def renew(self) -> None:
        """A batch begins; to be called while it is free. What moved the storage elsewhere (share_memory_) is undone."""
        if self._whole.data_ptr() != self._address:
            self._map()

    def __getitem__(self, place: InSlot) -> Tensor:
        """The tensor that lies there."""
        base = self._bases.get(place)
        if base is None:
            base = self._make(place)
        return base.data

    def _make(self, place: InSlot) -> Tensor:
        if len(self._bases) >= _MOST_PLACES:
            self._bases.clear()
        end = place.offset + place.dtype.itemsize * math.prod(place.shape)
        with torch.inference_mode(False):
            tensor = self._whole[place.offset : end].view(place.dtype).view(place.shape).data
        self._bases[place] = tensor
        return tensor
