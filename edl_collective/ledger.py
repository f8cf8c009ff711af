"""The ledger: which positions of which epoch were consumed in which generation. [pure]

It is part of the training state: it rewinds with the model, goes into each checkpoint, and names what was consumed in
the surviving lineage only. Adjacent intervals of a generation merge, and a completed epoch shrinks to one row, so its
size is one row per completed epoch plus one per resize of the epoch under way.

Invariant: the ledger records what it is told, also gaps and overlaps; `missing` and `doubled` find them, and
`complete` refuses an epoch that has any. It does not know which dataset index stands at a position (sampler.py), and
it is the plan's own account: audit.py checks the indices that the ranks really used.
"""

import json
from dataclasses import astuple, dataclass, replace
from typing import Self

from edl_collective.errors import LedgerError

LEDGER_VERSION = 1

#: half-open interval of positions
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Interval:
    """Positions [begin, end) of an epoch, consumed from `first_generation` to `generation` at last `world_size` ranks.

    The two generations differ only in the one row of a completed epoch, where `world_size` is that of the last.
    """

    epoch: int
    first_generation: int
    generation: int
    begin: int
    end: int
    world_size: int

    def __post_init__(self) -> None:
        if min(self.epoch, self.first_generation, self.begin) < 0:
            raise ValueError(f"epoch, generation and begin must be at least 0: {self}")
        if self.generation < self.first_generation or self.end <= self.begin or self.world_size < 1:
            raise ValueError(f"an interval needs begin < end, a world size of 1 or more, ordered generations: {self}")


class Ledger:
    """The consumed intervals, oldest first; equal by value."""

    def __init__(self, rows: tuple[Interval, ...] = ()) -> None:
        self._rows = list(rows)

    @property
    def rows(self) -> tuple[Interval, ...]:
        """Every interval in the order in which it was consumed."""
        return tuple(self._rows)

    @property
    def newest_generation(self) -> int:
        """The highest generation that consumed anything, 0 before the first step."""
        return max((row.generation for row in self._rows), default=0)

    def append(self, epoch: int, generation: int, begin: int, end: int, world_size: int) -> None:
        """Add the positions [begin, end) that one completed global step consumed.

        Raises ValueError when the interval is empty or negative.
        """
        added = Interval(epoch, generation, generation, begin, end, world_size)
        last = self._rows[-1] if self._rows else None
        if last is not None and _continues(last, added):
            self._rows[-1] = replace(last, end=end)
        else:
            self._rows.append(added)

    def complete(self, epoch: int, size: int) -> None:
        """Shrink an epoch of `size` samples, consumed exactly once, to one row. Harmless when done twice.

        Raises LedgerError when positions are missing, doubled or beyond `size`, naming the first of them.
        """
        rows = self._of(epoch)
        beyond = [(max(row.begin, size), row.end) for row in rows if row.end > size]
        for problem, spans in (
            ("missing", self.missing(epoch, size)),
            ("doubled", self.doubled(epoch)),
            ("beyond the end", beyond),
        ):
            if spans:
                raise LedgerError(
                    f"epoch {epoch} of {size} samples is not complete: positions {spans[0]} are {problem}"
                )
        if not rows:
            return
        first = min(row.first_generation for row in rows)
        last = max(rows, key=lambda row: row.generation)
        whole = Interval(epoch, first, last.generation, 0, size, last.world_size)
        at = self._rows.index(rows[0])
        self._rows = [row for row in self._rows if row.epoch != epoch]
        self._rows.insert(at, whole)

    def missing(self, epoch: int, size: int) -> list[Span]:
        """Intervals of [0, size) that no row of the epoch covers."""
        gaps: list[Span] = []
        reached = 0
        for begin, end in self._spans(epoch):
            if begin > reached:
                gaps.append((reached, min(begin, size)))
            reached = max(reached, end)
        if reached < size:
            gaps.append((reached, size))
        return [gap for gap in gaps if gap[0] < gap[1]]

    def doubled(self, epoch: int) -> list[Span]:
        """Intervals that more than one row of the epoch covers, merged."""
        overlaps: list[Span] = []
        reached = 0
        for begin, end in self._spans(epoch):
            if begin < reached:
                _merge_span(overlaps, (begin, min(end, reached)))
            reached = max(reached, end)
        return overlaps

    def to_json(self) -> str:
        """The ledger as one line of JSON."""
        return json.dumps({"version": LEDGER_VERSION, "rows": [astuple(row) for row in self._rows]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse to_json(). Raises LedgerError for anything that is not exactly such a text of this version."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise LedgerError(f"the ledger is not JSON: {error}") from error
        if not isinstance(document, dict) or set(document) != {"version", "rows"}:
            raise LedgerError("the ledger must be an object with exactly the fields version and rows")
        if document["version"] != LEDGER_VERSION:
            raise LedgerError(f"ledger version {document['version']!r} is not {LEDGER_VERSION}, which this EDL reads")
        if not isinstance(document["rows"], list):
            raise LedgerError("the rows of the ledger must be a list")
        return cls(tuple(_parse_row(number, row) for number, row in enumerate(document["rows"])))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Ledger({self._rows!r})"

    def _of(self, epoch: int) -> list[Interval]:
        return [row for row in self._rows if row.epoch == epoch]

    def _spans(self, epoch: int) -> list[Span]:
        return sorted((row.begin, row.end) for row in self._of(epoch))


def _continues(last: Interval, added: Interval) -> bool:
    same = (last.epoch, last.generation, last.world_size) == (added.epoch, added.generation, added.world_size)
    return same and last.end == added.begin


def _merge_span(spans: list[Span], added: Span) -> None:
    if spans and added[0] <= spans[-1][1]:
        spans[-1] = (spans[-1][0], max(spans[-1][1], added[1]))
    else:
        spans.append(added)


def _parse_row(number: int, row: object) -> Interval:
    if not isinstance(row, list) or len(row) != 6 or any(type(field) is not int for field in row):
        raise LedgerError(f"row {number} of the ledger must be six integers, not {row!r}")
    try:
        return Interval(*row)
    except ValueError as error:
        raise LedgerError(f"row {number} of the ledger: {error}") from error
