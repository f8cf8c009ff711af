"""Generators as sources of a DistillReader: of samples, of lists of samples, or of batches.

Paddle EDL's users have them. A generator runs in a process of its own (a DataLoader worker), is called anew for each
epoch, and what it yields goes through the ring as batches do. What comes out has the shape of what went in: samples,
lists of samples, or batches, each with the predictions appended. A sample is a tuple or list of arrays, tensors and
plain values.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.errors import ConfigError
from distill.slot_batches import Samples

Generator = Callable[[], Iterator[Any]]
#: samples of a request where nobody says
SAMPLES_OF_A_REQUEST = 32


class Kind(Enum):
    """What a generator yields."""

    SAMPLE = "samples"
    SAMPLE_LIST = "lists of samples"
    BATCH = "batches"


class End:
    """Comes instead of a batch when the generator has ended."""


class GeneratorDataset(Dataset[Any]):
    """Gives what the generator yields, item by item; an index is the number of the epoch."""

    def __init__(self, generator: Generator, kind: Kind, samples: int) -> None:
        self._generator, self._kind, self._samples = generator, kind, samples
        self._epoch = -1
        self._items: Iterator[Any] = iter(())

    def __getitems__(self, epochs: Sequence[int]) -> Any:
        if epochs[0] != self._epoch:
            self._epoch, self._items = epochs[0], iter(self._generator())
        if self._kind is Kind.SAMPLE:
            return list(itertools.islice(self._items, self._samples)) or End()
        return next(self._items, End())

    def __getitem__(self, index: int) -> Any:
        raise TypeError("a generator is read in its order")


class Epochs:
    """The indices of a GeneratorDataset: the number of the epoch, without end."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.repeat([self.epoch])


class SampleColumns:
    """A collate: the items of samples that teachers get become columns [samples, ...]; a batch stays as it is."""

    def __init__(self, kind: Kind, ins: Sequence[str | None]) -> None:
        self._kind, self._ins = kind, tuple(ins)

    def __call__(self, item: Any) -> Any:
        if isinstance(item, End) or self._kind is Kind.BATCH:
            return item
        if not isinstance(item, list | tuple) or not item:
            raise ConfigError(f"a generator of {self._kind.value} yielded {type(item).__name__} without samples in it")
        rows = [sample if isinstance(sample, tuple | list) else (sample,) for sample in item]
        columns = {name: _column(rows, place, name) for place, name in enumerate(self._ins) if name is not None}
        places = {place for place, name in enumerate(self._ins) if name is not None and _is_array(rows[0][place])}
        rest = [tuple(None if p in places else value for p, value in enumerate(row)) for row in rows]
        return Samples(columns, {p: name for p, name in enumerate(self._ins) if p in places and name}, rest)


def samples_of(samples: Samples, predictions: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The samples as they were, each with its rows of the predictions behind it."""
    rebuilt = []
    for row, rest in enumerate(samples.rest):
        names = samples.places
        values = (samples.columns[names[p]][row] if p in names else value for p, value in enumerate(rest))
        rebuilt.append((*values, *(prediction[row] for prediction in predictions)))
    return rebuilt


def loader_of(generator: Generator, kind: Kind, ins: Sequence[str | None], samples: int | None) -> "DataLoader[Any]":
    """A DataLoader over a generator; its batch sampler is an Epochs."""
    dataset = GeneratorDataset(generator, kind, samples or SAMPLES_OF_A_REQUEST)
    return DataLoader(
        dataset,
        batch_sampler=Epochs(),
        collate_fn=SampleColumns(kind, ins),
        num_workers=1,
        persistent_workers=True,
    )


def _column(rows: Sequence[Sequence[Any]], place: int, name: str) -> Any:
    try:
        values = [row[place] for row in rows]
        if isinstance(values[0], Tensor):
            return torch.stack(values)
        return np.stack(values)
    except IndexError:
        raise ConfigError(f"ins= names item {place} of a sample {name!r}, and a sample has fewer items") from None
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"item {name!r} has not one shape in all samples of a request: {error}") from error


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)
