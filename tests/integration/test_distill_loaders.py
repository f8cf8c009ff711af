"""What a DistillReader makes of loaders: their state, their worker processes however started, their options."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from distill_students import FaultTeacher, Numbered, check, named, numbered, reader_options, teachers
from torch.utils.data import DataLoader, get_worker_info

from distill.errors import DistillError
from distill.reader import DistillReader

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def running() -> Iterator[list[FaultTeacher]]:
    with teachers(()) as found:
        yield found


class StatefulLoader:
    """As torchdata's: its state is the place behind the batch that it gave last; an epoch begins where it was put."""

    def __init__(self, batches: int, size: int = 4) -> None:
        self._batches, self._size = batches, size
        self._place = self._start = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        self._place, self._start = self._start, 0
        while self._place < self._batches:
            numbers = range(self._place * self._size, (self._place + 1) * self._size)
            self._place += 1
            yield torch.stack([numbered(number) for number in numbers]), torch.tensor(numbers)
        self._place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._place = self._start = state["place"]


def reader_of(running: list[FaultTeacher], loader: Any, **options: Any) -> DistillReader:
    return DistillReader(loader, **reader_options(teachers=named(running), **options))


@pytest.mark.parametrize("window", [1, 8])
def test_the_state_is_that_of_the_batch_that_came_out(running: list[FaultTeacher], window: int) -> None:
    plain = StatefulLoader(12)
    with reader_of(running, StatefulLoader(12), window=window) as reader:
        assert len(reader) == 12
        for _ in range(2):
            assert reader.state_dict() == plain.state_dict()
            for batch, same in zip(reader, plain, strict=True):
                assert check(*batch) == same[1].tolist()
                assert reader.state_dict() == plain.state_dict()
        batches = iter(reader)
        for _ in range(5):
            next(batches)
        del batches
        saved = reader.state_dict()
        assert saved == {"place": 5}
        assert [n for batch in reader for n in check(*batch)] == list(range(48)), "a new epoch"
        reader.load_state_dict(saved)
        assert reader.state_dict() == saved
        assert [n for batch in reader for n in check(*batch)] == list(range(20, 48))
    with reader_of(running, StatefulLoader(12), window=window) as other:
        other.load_state_dict(saved)
        assert [n for batch in other for n in check(*batch)] == list(range(20, 48))
        assert [n for batch in other for n in check(*batch)] == list(range(48))


def test_without_a_state_or_a_length_it_says_so(running: list[FaultTeacher]) -> None:
    plain = reader_of(running, DataLoader(Numbered(), batch_size=8))
    for use in (plain.state_dict, lambda: plain.load_state_dict({})):
        with pytest.raises(DistillError, match=r"a DataLoader cannot be saved.*ElasticBatchSampler"):
            use()
    with pytest.raises(TypeError, match="has no length"):
        len(DistillReader(ins=["x"], predicts=["y"], sample_generator=lambda: iter(())))


class Prepared(Numbered):
    """Fails in a worker whose worker_init_fn has not prepared it."""

    def __init__(self) -> None:
        super().__init__(40)
        self.ready = {"prepared": False}

    def __getitem__(self, index: int) -> Any:
        assert self.ready["prepared"]
        return super().__getitem__(index)


def prepare(_: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.ready["prepared"] = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_may_be_started_in_each_way(running: list[FaultTeacher], context: str) -> None:
    loader = DataLoader(
        Prepared(), batch_size=8, num_workers=1, multiprocessing_context=context, worker_init_fn=prepare
    )
    with reader_of(running, loader) as reader:
        assert [n for batch in reader for n in check(*batch)] == list(range(40))
        assert reader.stats.outside_of_ring == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_memory_is_asked_for_in_vain_without_an_accelerator(running: list[FaultTeacher], workers: int) -> None:
    """On one with an accelerator the batches come pinned; the tests run without, and nothing may break or warn."""
    loader = DataLoader(Numbered(), batch_size=8, num_workers=workers, pin_memory=True)
    with warnings.catch_warnings(action="error"), reader_of(running, loader) as reader:
        for pixels, labels, predictions in reader:
            check(pixels, labels, predictions)
            assert pixels.is_pinned() == torch.cuda.is_available()
