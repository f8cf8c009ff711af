"""The exactly-once audit: which dataset indices went into the surviving parameters, by what the ranks recorded.

StepLog writes, on each rank, the indices that the dataset really gave for a step, before the step is reduced, and a
second line once the optimizer step has completed. The audit reads the logs of all workers and a lineage (which steps
of which generation survive) and counts each dataset index per epoch. It never looks at the sampler's plan.

Invariant: a step counts when at least one rank confirmed it. A reduction completes on a rank only if every rank
contributed, so the recorded indices of a rank that was killed between the reduction and its own confirmation count too.

A line is one write() to a file opened for appending: SIGKILL leaves whole lines, or one torn last line (full disk),
which the reader drops. Generations must rise over the whole life of the job, restarts from a checkpoint included.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from edl_collective.errors import AuditError
from edl_collective.sampler import Indices

_TOOK = {"generation", "step", "rank", "epoch", "world_size", "indices"}
_DONE = {"generation", "step", "rank", "done"}


class StepLog:
    """Appends what one worker takes and completes to a file of its own."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`; raises OSError when that fails."""
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._current: dict[str, int] | None = None

    def take(self, generation: int, epoch: int, step: int, rank: int, world_size: int, indices: Sequence[int]) -> None:
        """Record, before the reduction, the dataset indices of this rank in a global step; [] for an empty chunk."""
        self._current = {"generation": generation, "step": step, "rank": rank}
        taken = {"epoch": epoch, "world_size": world_size, "indices": [int(index) for index in indices]}
        self._write(self._current | taken)

    def confirm(self) -> None:
        """Record that the optimizer step of the last take() completed. Raises AuditError when there is none open."""
        if self._current is None:
            raise AuditError(f"{self._path}: confirm() needs a take() before it, once for each step")
        self._write(self._current | {"done": True})
        self._current = None

    def close(self) -> None:
        """Close the file; the log can no longer be written."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise AuditError(f"{self._path}: only {written} of {len(line)} bytes were written; is the disk full?")


class Taken(NamedTuple):
    """What one rank recorded of one global step."""

    generation: int
    epoch: int
    step: int
    rank: int
    world_size: int
    #: int64 [local_count]
    indices: Indices


class Segment(NamedTuple):
    """Global steps first_step .. last_step, both included, that survive as `generation` completed them."""

    generation: int
    first_step: int
    last_step: int


@dataclass
class Records:
    """The records of all ranks of a job."""

    taken: list[Taken] = field(default_factory=list)
    #: (generation, step) that at least one rank confirmed
    done: set[tuple[int, int]] = field(default_factory=set)
    #: files that ended within a line
    torn: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class EpochAudit:
    """One epoch of the surviving lineage; all three are empty when each index was used exactly once."""

    epoch: int
    #: indices of the dataset that were never used
    missing: tuple[int, ...]
    #: indices of the dataset that were used more than once
    doubled: tuple[int, ...]
    #: recorded indices that the dataset does not have
    extra: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """Whether each index was used exactly once."""
        return not (self.missing or self.doubled or self.extra)

    def __str__(self) -> str:
        if self.ok:
            return f"epoch {self.epoch}: each sample exactly once"
        kinds = (("missing", self.missing), ("doubled", self.doubled), ("extra", self.extra))
        return f"epoch {self.epoch}: " + ", ".join(
            f"{len(found)} {kind} {_some(found)}" for kind, found in kinds if found
        )


@dataclass(frozen=True)
class AuditReport:
    """The result of audit(); str() of it is for people."""

    epochs: tuple[EpochAudit, ...]
    #: (generation, step, rank) of surviving steps that a rank of that world did not record
    silent: tuple[tuple[int, int, int], ...]

    @property
    def ok(self) -> bool:
        """Whether every epoch is right and every rank recorded each surviving step."""
        return not self.silent and all(epoch.ok for epoch in self.epochs)

    def __str__(self) -> str:
        lines = [str(epoch) for epoch in self.epochs]
        if self.silent:
            lines.append(f"{len(self.silent)} records (generation, step, rank) are absent: {_some(self.silent)}")
        return "\n".join(lines)


def read_logs(paths: Iterable[Path]) -> Records:
    """Read the step logs of all workers of a job.

    A step that a worker took twice in one generation without completing it in between counts once, as taken last.
    Raises AuditError for a whole line that is no record; OSError when a file cannot be read.
    """
    records = Records()
    for path in sorted(paths):
        _read_log(path, records)
    return records


def derive_lineage(records: Records) -> tuple[Segment, ...]:
    """The lineage that the confirmations tell: where a generation begins, what older ones did from there on is undone.

    Raises AuditError when steps between two generations were confirmed by nobody.
    """
    steps: dict[int, list[int]] = defaultdict(list)
    for generation, step in records.done:
        steps[generation].append(step)
    lineage: list[Segment] = []
    for generation in sorted(steps):
        first = min(steps[generation])
        kept = (Segment(old.generation, old.first_step, min(old.last_step, first - 1)) for old in lineage)
        lineage = [segment for segment in kept if segment.first_step <= segment.last_step]
        lineage.append(Segment(generation, first, max(steps[generation])))
    _check_lineage(lineage)
    return tuple(lineage)


def audit(records: Records, lineage: Sequence[Segment], dataset_size: int, epochs: Iterable[int]) -> AuditReport:
    """Count each dataset index in each of the completed `epochs` of the surviving lineage.

    Arguments: lineage, in the order of its steps, given by whoever resized the job or by derive_lineage();
    dataset_size, samples of an epoch.
    Raises AuditError when the lineage's steps overlap or leave a gap; ValueError when dataset_size is not positive.
    """
    if dataset_size < 1:
        raise ValueError(f"dataset_size must be at least 1, not {dataset_size}")
    _check_lineage(lineage)
    surviving = {
        (segment.generation, step) for segment in lineage for step in range(segment.first_step, segment.last_step + 1)
    } & records.done
    used: dict[int, list[Indices]] = defaultdict(list)
    for taken in records.taken:
        if (taken.generation, taken.step) in surviving:
            used[taken.epoch].append(taken.indices)
    return AuditReport(
        tuple(_audit_epoch(epoch, used[epoch], dataset_size) for epoch in sorted(epochs)), _silent(records, surviving)
    )


def _audit_epoch(epoch: int, chunks: list[Indices], dataset_size: int) -> EpochAudit:
    indices = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
    known = (indices >= 0) & (indices < dataset_size)
    counts = np.bincount(indices[known], minlength=dataset_size)  # int64 [dataset_size]
    return EpochAudit(
        epoch,
        missing=tuple(np.flatnonzero(counts == 0).tolist()),
        doubled=tuple(np.flatnonzero(counts > 1).tolist()),
        extra=tuple(np.unique(indices[~known]).tolist()),
    )


def _silent(records: Records, surviving: set[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    present: dict[tuple[int, int], set[int]] = {key: set() for key in surviving}
    worlds: dict[tuple[int, int], int] = dict.fromkeys(surviving, 1)
    for taken in records.taken:
        key = (taken.generation, taken.step)
        if key in surviving:
            present[key].add(taken.rank)
            worlds[key] = max(worlds[key], taken.world_size)
    return tuple((*key, rank) for key in sorted(surviving) for rank in range(worlds[key]) if rank not in present[key])


def _check_lineage(lineage: Sequence[Segment]) -> None:
    for segment in lineage:
        if segment.first_step > segment.last_step:
            raise AuditError(f"a segment of the lineage is empty: {segment}")
    for before, after in pairwise(lineage):
        if after.first_step != before.last_step + 1:
            raise AuditError(f"the lineage needs each step once: {before} is followed by {after}")


def _read_log(path: Path, records: Records) -> None:
    *lines, tail = path.read_bytes().split(b"\n")
    if tail:
        records.torn.append(path)
    taken: list[Taken] = []
    open_at: dict[
        tuple[int, int], int
    ] = {}  # (generation, step) taken and not confirmed by this worker: place in taken
    for number, line in enumerate(lines, 1):
        record = _parse_line(line, f"{path}:{number}")
        key = (record["generation"], record["step"])
        if "done" in record:
            records.done.add(key)
            open_at.pop(key, None)
            continue
        entry = Taken(**record | {"indices": np.array(record["indices"], dtype=np.int64)})
        if key in open_at:
            taken[open_at[key]] = entry
        else:
            open_at[key] = len(taken)
            taken.append(entry)
    records.taken.extend(taken)


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise AuditError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict) or set(record) not in (_TOOK, _DONE):
        raise AuditError(f"{where} must have exactly the fields {sorted(_TOOK)} or {sorted(_DONE)}")
    numbers = [value for name, value in record.items() if name not in ("indices", "done")]
    indices = record.get("indices", [])
    if not isinstance(indices, list) or any(type(value) is not int for value in [*numbers, *indices]):
        raise AuditError(f"{where} must hold integers")
    return record


def _some(found: Sequence[object]) -> str:
    shown = ", ".join(str(value) for value in found[:8])
    return f"({shown}{', ...' if len(found) > 8 else ''})"
