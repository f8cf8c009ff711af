"""Slots of the ring: what is written into them and who may have them."""

import pytest
import torch

from distill.errors import ConfigError
from distill.io_messages import NO_SLOT, Part, Post, decode_request, encode
from distill.ring import Control, Ring, Slots
from distill.slot_batches import Filling, SlotFull, Views, parts_of, restore


def test_a_slot_is_free_when_its_lease_is() -> None:
    class Kept:
        free = False

    ring = Ring(2, 1 << 16)
    slots = Slots(ring)
    slot, kept = slots.take(), Kept()
    slots.lend(slot, kept)
    other = slots.take()
    assert slots.take() == NO_SLOT
    slots.give_back(other)
    assert slots.free == 1
    kept.free = True
    assert slots.free == 2
    assert slots.take() == slot, "the one that was freed last"
    ring.close()


def test_what_was_announced_is_there_until_it_is_cleared() -> None:
    ring = Ring(2, 1 << 16)
    post = Post(7, 1, 2, 8192, (Part("x", "UINT8", (2, 3), 4096),))
    ring.announce(1, 7, encode(post))
    seq, message = ring.announced(1)
    assert (seq, decode_request(message)) == (7, post)
    assert ring.announced(0) == (0, b"")
    ring.clear(1)
    assert ring.announced(1) == (0, b"")
    control = Control(ring)
    control.write(320, 10, 1.5, 99.25)
    assert Control(ring).read() == (320, 10, 1.5, 99.25)
    ring.close()


def test_a_batch_beyond_the_slot_is_refused_before_it_is_written() -> None:
    ring = Ring(1, 1 << 14)
    with pytest.raises(SlotFull):
        Filling(ring.slot(0)).store(torch.zeros(1 << 14))
    ring.close()


def test_stacked_samples_lie_in_the_slot_once() -> None:
    ring = Ring(1, 1 << 16)
    filling = Filling(ring.slot(0))
    stacked = filling.stack([torch.tensor([1, 2]), torch.tensor([3, 4])])
    end = filling.end
    nest = filling.store((stacked, torch.tensor([5, 6])))
    assert filling.end > end
    rows, (part,) = parts_of(nest, ["x"])
    assert (rows, part.shape, part.datatype) == (2, (2, 2), "INT64")
    assert torch.equal(restore(Views(ring.slot(0)), nest[0]), torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(ConfigError, match="shapes"):
        filling.stack([torch.zeros(2), torch.zeros(3)])
    ring.close()
