"""The audit of step logs: each sample that was lost, doubled or foreign is found, and only completed steps count."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from edl_collective.audit import AuditReport, Segment, StepLog, audit, derive_lineage, read_logs
from edl_collective.batches import ElasticBatchSampler, RecordingDataset, iterate
from edl_collective.errors import AuditError
from edl_collective.sampler import RankStep
from edl_collective.scaling import TotalBatch

SIZE = 50


class Numbers(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return -index

    def __len__(self) -> int:
        return SIZE


class OffByOne(ElasticBatchSampler):
    """The planted fault: after a resize the rest of the epoch begins one sample too late."""

    def steps(self) -> Iterator[RankStep]:
        for step in super().steps():
            late = step.indices if self.position == 0 else (step.indices + 1) % self.dataset_size
            yield step._replace(indices=late)


def _train(
    folder: Path,
    generations: Sequence[tuple[int, int]],
    sampler_type: type[ElasticBatchSampler] = ElasticBatchSampler,
    workers: int = 0,
) -> None:
    """Train an epoch: each generation is (world size, completed steps), then a step that fails after it was taken."""
    state = sampler_type(SIZE, TotalBatch(8), seed=1).state_dict()
    for generation, (world, steps) in enumerate(generations, 1):
        for rank in range(world):
            sampler = sampler_type(SIZE, TotalBatch(8), seed=1)
            sampler.set_world(rank, world, generation)
            sampler.load_state_dict(state)
            loader = DataLoader(RecordingDataset(Numbers()), batch_sampler=sampler, num_workers=workers)
            with StepLog(folder / f"worker-{generation}-{rank}.jsonl") as log:
                for done, (step, batch) in enumerate(iterate(loader, sampler)):
                    indices = [] if batch is None else batch.sample_index.tolist()
                    log.take(
                        generation=generation,
                        epoch=sampler.epoch,
                        step=step.index,
                        rank=rank,
                        world_size=world,
                        indices=indices,
                    )
                    if done == steps:
                        break
                    sampler.advance(step.global_count)
                    log.confirm()
        state = sampler.state_dict()


def _report(folder: Path, lineage: Sequence[Segment] | None = None) -> AuditReport:
    records = read_logs(folder.glob("*.jsonl"))
    return audit(records, derive_lineage(records) if lineage is None else lineage, SIZE, epochs=[0])


def _log(folder: Path, *rows: tuple[int, int, int, int, list[int], bool]) -> None:
    """Rows of (generation, step, rank, world size, indices, confirmed), one file per rank."""
    for generation, step, rank, world, indices, confirmed in rows:
        with StepLog(folder / f"rank-{rank}.jsonl") as log:
            log.take(generation=generation, epoch=0, step=step, rank=rank, world_size=world, indices=indices)
            if confirmed:
                log.confirm()


@pytest.mark.parametrize("workers", [0, 1])
def test_resized_and_failed_epoch_passes(tmp_path: Path, workers: int) -> None:
    _train(tmp_path, [(2, 2), (4, 1), (1, 99)], workers=workers)
    report = _report(tmp_path)
    assert report.ok, report
    assert str(report) == "epoch 0: each sample exactly once"


def test_off_by_one_in_the_sampler_fails(tmp_path: Path) -> None:
    _train(tmp_path, [(2, 2), (4, 1), (1, 99)], OffByOne)
    report = _report(tmp_path)
    assert not report.ok
    assert report.epochs[0].missing
    assert report.epochs[0].doubled
    assert "missing" in str(report)
    assert "doubled" in str(report)


def test_lost_doubled_and_foreign_indices_are_told_apart(tmp_path: Path) -> None:
    _log(tmp_path, (1, 0, 0, 1, [*range(1, SIZE), 7, SIZE, -1], True))
    report = _report(tmp_path)
    assert (report.epochs[0].missing, report.epochs[0].doubled, report.epochs[0].extra) == ((0,), (7,), (-1, SIZE))
    assert not report.ok


def test_step_that_no_rank_completed_does_not_count(tmp_path: Path) -> None:
    half = SIZE // 2
    _log(tmp_path, (1, 0, 0, 1, list(range(half)), True), (1, 1, 0, 1, list(range(half, SIZE)), False))
    for lineage in (None, [Segment(1, 0, 1)]):  # even when whoever resized the job believes that it survived
        assert _report(tmp_path, lineage).epochs[0].missing == tuple(range(half, SIZE))


def test_rank_killed_before_its_confirmation_counts(tmp_path: Path) -> None:
    _log(tmp_path, (1, 0, 0, 2, list(range(20)), True), (1, 0, 1, 2, list(range(20, SIZE)), False))
    assert _report(tmp_path).ok


def test_rolled_back_step_is_replaced_by_its_repetition(tmp_path: Path) -> None:
    """Generation 1 confirmed step 1, but generation 2 restarted from a checkpoint taken before it."""
    _log(
        tmp_path,
        (1, 0, 0, 1, list(range(20)), True),
        (1, 1, 0, 1, list(range(20, 30)), True),
        (2, 1, 0, 1, list(range(20, SIZE)), True),
    )
    records = read_logs(tmp_path.glob("*.jsonl"))
    assert derive_lineage(records) == (Segment(1, 0, 0), Segment(2, 1, 1))
    assert _report(tmp_path).ok
    assert _report(tmp_path, [Segment(1, 0, 1)]).epochs[0].missing == tuple(range(30, SIZE))


def test_rollback_over_a_whole_generation_drops_it(tmp_path: Path) -> None:
    _log(
        tmp_path,
        (1, 0, 0, 1, list(range(10)), True),
        (2, 1, 0, 1, list(range(10, 20)), True),
        (3, 0, 0, 1, list(range(SIZE)), True),
    )
    assert derive_lineage(read_logs(tmp_path.glob("*.jsonl"))) == (Segment(3, 0, 0),)
    assert _report(tmp_path).ok


def test_step_taken_again_in_its_generation_counts_once(tmp_path: Path) -> None:
    _log(tmp_path, (1, 0, 0, 1, [3, 4], False), (1, 0, 0, 1, list(range(SIZE)), True))
    assert _report(tmp_path).ok


def test_step_completed_twice_in_its_generation_counts_twice(tmp_path: Path) -> None:
    _log(tmp_path, (1, 0, 0, 1, list(range(SIZE)), True), (1, 0, 0, 1, [5], True))
    assert _report(tmp_path).epochs[0].doubled == (5,)


def test_rank_that_recorded_nothing_is_named(tmp_path: Path) -> None:
    _log(tmp_path, (1, 0, 0, 3, list(range(SIZE)), True), (1, 0, 2, 3, [], True))
    report = _report(tmp_path)
    assert report.silent == ((1, 0, 1),)
    assert not report.ok


def test_torn_last_line_is_dropped_and_told(tmp_path: Path) -> None:
    _log(tmp_path, (1, 0, 0, 1, list(range(SIZE)), True))
    path = tmp_path / "rank-0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"generation":1,"st')
    records = read_logs([path])
    assert records.torn == [path]
    assert audit(records, [Segment(1, 0, 0)], SIZE, epochs=[0]).ok


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"generation": 1}',
        '{"generation": 1, "step": "0", "rank": 0, "done": true}',
        '{"generation": 1, "step": 0, "rank": 0, "epoch": 0, "world_size": 1, "indices": [0.5]}',
        '{"generation": 1, "step": 0, "rank": 0, "epoch": 0, "world_size": 1, "indices": 5}',
    ],
)
def test_line_that_is_no_record_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rank-0.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(AuditError, match=r"rank-0.jsonl:1 (is|must)"):
        read_logs([path])


@pytest.mark.parametrize(
    "lineage",
    [[Segment(1, 0, 2), Segment(2, 2, 3)], [Segment(1, 0, 2), Segment(2, 4, 5)], [Segment(1, 3, 2)]],
    ids=["overlap", "gap", "empty"],
)
def test_lineage_that_is_none_is_refused(tmp_path: Path, lineage: list[Segment]) -> None:
    with pytest.raises(AuditError, match="lineage"):
        _report(tmp_path, lineage)


def test_confirmation_without_a_step_is_refused(tmp_path: Path) -> None:
    with StepLog(tmp_path / "log.jsonl") as log, pytest.raises(AuditError, match=r"take\(\)"):
        log.confirm()


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with StepLog(path) as log:
        log.take(generation=1, epoch=0, step=0, rank=0, world_size=1, indices=[1])
        assert path.read_text().count("\n") == 1
        log.confirm()
        assert path.read_text().count("\n") == 2
