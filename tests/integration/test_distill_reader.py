"""A DistillReader over real processes yields what its loader yields, with predictions of the same samples."""

import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_students import WIDTH, FaultTeacher, Numbered, check, free_port, named, numbered, reader_options, teachers
from teacher_models import ids_of, with_ids
from teachers import TeacherProcess, started
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from distill.errors import ConfigError, DistillError, Mismatch, NoTeacher, TeacherRefused
from distill.reader import DistillReader
from distill.records import Normalisation
from edl_collective.batches import ElasticBatchSampler, RecordingDataset, iterate
from edl_collective.loader_workers import LoaderWorkers
from edl_collective.scaling import TotalBatch
from edl_collective.warm_up import Rehearsal

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pair() -> Iterator[list[FaultTeacher]]:
    with teachers((), ()) as running:
        yield running


def reader_of(pair: list[FaultTeacher], loader: Any, **options: Any) -> DistillReader:
    return DistillReader(loader, **reader_options(teachers=named(pair), **options))


def loader_of(dataset: Any = None, workers: int = 2, batch: int = 8, **options: Any) -> "DataLoader[Any]":
    return DataLoader(dataset or Numbered(), batch_size=batch, num_workers=workers, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_after_epoch_in_order_the_ragged_last_batch_included(pair: list[FaultTeacher], workers: int) -> None:
    with reader_of(pair, loader_of(workers=workers)) as reader:
        assert len(reader) == 7
        for _ in range(2):
            numbers = [n for batch in reader for n in check(*batch)]
            assert numbers == list(range(50))
        assert (reader.stats.batches, reader.stats.samples, reader.stats.outside_of_ring) == (14, 100, 0)


@pytest.mark.parametrize("persistent", [False, True])
def test_an_epoch_may_end_early(pair: list[FaultTeacher], persistent: bool) -> None:
    with reader_of(pair, loader_of(Numbered(200), persistent_workers=persistent)) as reader:
        for _ in range(3):
            left = iter(reader)
            assert check(*next(left)) == list(range(8))
        next(iter(reader))
        with pytest.raises(DistillError, match="one at a time"):
            next(left)
        assert [n for batch in reader for n in check(*batch)] == list(range(200))


def test_batches_that_are_kept_stay_as_they_are(pair: list[FaultTeacher]) -> None:
    """More of them than the ring has slots: the others take the way around it."""
    with reader_of(pair, loader_of(Numbered(400), batch=2), window=1) as reader:
        kept = list(reader)
        assert reader.stats.outside_of_ring > 0
        assert [n for batch in kept for n in check(*batch)] == list(range(400))
        del kept
        gc.collect()
        before = reader.stats.outside_of_ring
        numbers = [n for batch in reader for n in check(*batch)]
        assert numbers == list(range(400))
        assert reader.stats.outside_of_ring == before, "the slots are free again"


def test_predictions_may_be_in_half_precision() -> None:
    """Of a teacher server of this project, whose answers are FP16."""
    ids = torch.arange(48)
    pixels = torch.from_numpy(with_ids(np.zeros((48, 3, 8, 8), np.uint8), ids.numpy()))
    loader = DataLoader(TensorDataset(pixels, ids), batch_size=8, num_workers=1)
    with TeacherProcess("teacher_models:identity", "--mean", "0,0,0", "--std", "1,1,1", "--scale", "1") as teacher:
        for as_float32 in (False, True):
            options: dict[str, Any] = {"teachers": teacher.url, "as_float32": as_float32}
            with DistillReader(loader, ins=["image"], predicts=["output"], **options) as reader:
                for images, labels, outputs in reader:
                    assert outputs.dtype is (torch.float32 if as_float32 else torch.float16)
                    assert ids_of(outputs) == labels.tolist()
                    assert images.shape == (8, 3, 8, 8)
        wanted = Normalisation((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
        with (
            DistillReader(
                loader, ins=["image"], predicts=["output"], teachers=teacher.url, normalisation=wanted
            ) as reader,
            pytest.raises(Mismatch, match="normalises pixels by"),
        ):
            next(iter(reader))


def test_large_batches_are_divided_among_teachers(pair: list[FaultTeacher]) -> None:
    with reader_of(pair, loader_of(batch=20), teacher_batch_size=3) as reader:
        assert [n for batch in reader for n in check(*batch)] == list(range(50))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((numbered(number), number) for number in range(50))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_cannot_be_wrapped_is_read_as_it_is(pair: list[FaultTeacher], workers: int) -> None:
    with reader_of(pair, loader_of(Stream(), workers=workers)) as reader:
        for _ in range(2):
            assert [n for batch in reader for n in check(*batch)] == list(range(50))
        assert reader.stats.outside_of_ring == 14


def test_mappings_records_and_what_is_no_tensor(pair: list[FaultTeacher]) -> None:
    def collate(samples: list[Any]) -> dict[str, Any]:
        pixels, labels = zip(*samples, strict=True)
        return {"x": torch.stack(pixels), "label": torch.tensor(labels), "names": [f"n{label}" for label in labels]}

    with reader_of(pair, loader_of(collate_fn=collate)) as reader:
        batches = list(reader)
    assert [n for b in batches for n in check(b["x"], b["label"], b["y"])] == list(range(50))
    assert batches[1]["names"] == [f"n{n}" for n in range(8, 16)]
    with reader_of(pair, loader_of(RecordingDataset(Numbered()))) as reader:
        for batch in reader:
            assert batch.sample_index.tolist() == check(*batch.item)


def test_a_standby_rehearses_with_a_reader(pair: list[FaultTeacher]) -> None:
    sampler = ElasticBatchSampler(50, TotalBatch(8, min_local_batch=2), shuffle=True, seed=3)
    loader = DataLoader(Numbered(50), batch_sampler=sampler, num_workers=1)
    model = torch.nn.Linear(4, 1)
    seen: list[int] = []

    def loss_of(batch: Any) -> torch.Tensor:
        seen.extend(check(*batch))
        return torch.mean(model(batch[2]))

    with reader_of(pair, loader) as reader:
        Rehearsal(model, sampler, LoaderWorkers(), reader, loss_of, recorded=False).run()
        assert seen == [0, 1], "a batch of the smallest size"
        for step, batch in iterate(reader, sampler):
            assert batch is not None
            seen.extend(check(*batch))
            sampler.advance(step.global_count)
    assert sorted(seen[2:]) == list(range(50)), "each sample once, those of the rehearsal too"


def test_an_elastic_epoch_goes_on_in_another_world(pair: list[FaultTeacher]) -> None:
    sampler = ElasticBatchSampler(120, TotalBatch(8), shuffle=True, seed=3)
    loader = DataLoader(Numbered(120), batch_sampler=sampler, num_workers=2)
    expected = sampler.state_dict()
    seen: list[int] = []
    with reader_of(pair, loader) as reader:

        def read(steps: int) -> None:
            for count, (step, batch) in enumerate(iterate(reader, sampler), 1):
                assert batch is not None
                seen.extend(check(*batch))
                sampler.advance(step.global_count)
                if count == steps:
                    return

        read(3)
        workers = reader._workers._batches._workers
        sampler.set_world(0, 2, 1)  # half of each batch is another rank's now
        read(4)
        assert reader._workers._batches._workers == workers, "the same processes go on"
        sampler.set_world(0, 1, 2)
        read(1000)
        whole = ElasticBatchSampler(120, TotalBatch(8), shuffle=True, seed=3)
        whole.load_state_dict(expected)
        order = [index for step in whole.steps() for index in step.indices.tolist()]
        others = [index for step in range(3, 7) for index in order[step * 8 + 4 : step * 8 + 8]]
        assert seen == [index for index in order if index not in others]
        sampler.set_epoch(1)
        assert sorted(n for _, batch in iterate_all(reader, sampler) for n in check(*batch)) == list(range(120))


def iterate_all(reader: DistillReader, sampler: ElasticBatchSampler) -> Iterator[Any]:
    for step, batch in iterate(reader, sampler):
        yield step, batch
        sampler.advance(step.global_count)


def pairs(start: int, count: int) -> list[tuple[Any, int]]:
    return [(numbered(n).numpy(), n) for n in range(start, start + count)]


def test_generators_of_samples_lists_and_batches(pair: list[FaultTeacher]) -> None:
    with reader_of(pair, None) as reader:
        reader.set_sample_generator(lambda: iter(pairs(0, 70)))
        for _ in range(2):
            samples = list(reader())
            assert [label for _, label, _ in samples] == list(range(70))
            for pixels, label, prediction in samples:
                assert isinstance(pixels, np.ndarray)
                assert (pixels == numbered(label).numpy()).all()
                assert prediction[0] == label
        next(iter(reader()))
        assert [label for _, label, _ in reader()] == list(range(70))
    with reader_of(pair, None, sample_list_generator=lambda: (pairs(n, 5) for n in range(0, 40, 5))) as reader:
        lists = list(reader)
        assert [[label for _, label, _ in samples] for samples in lists] == [
            [*range(n, n + 5)] for n in range(0, 40, 5)
        ]
        assert all(prediction[0] == label for samples in lists for _, label, prediction in samples)
    with reader_of(pair, None) as reader:
        reader.set_batch_generator(lambda: ((np.stack([p for p, _ in pairs(n, 4)]), n) for n in (0, 4)))
        assert [(n, y[:, 0].tolist()) for _, n, y in reader] == [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7])]


def test_an_exception_in_the_dataset_reaches_the_consumer(pair: list[FaultTeacher]) -> None:
    for workers in (0, 2):
        with reader_of(pair, loader_of(Numbered(fail_at=20), workers=workers)) as reader:
            numbers: list[int] = []
            with pytest.raises(LookupError, match="sample 20 is not to be had") as caught:
                numbers.extend(n for batch in reader for n in check(*batch))
            assert numbers == list(range(16))
            told = str(caught.value) + "".join(str(entry.path) for entry in caught.traceback)
            assert "distill_students.py" in told

    def failing() -> Iterator[Any]:
        yield from pairs(0, 40)
        raise ZeroDivisionError("of the generator")

    with (
        reader_of(pair, None, sample_generator=failing) as reader,
        pytest.raises(ZeroDivisionError, match="of the gen"),
    ):
        list(reader)


def ragged(samples: list[Any]) -> Any:
    return torch.stack([pixels for pixels, _ in samples]), torch.zeros(3)


def empty(samples: list[Any]) -> Any:
    return torch.zeros(0, WIDTH, dtype=torch.uint8), torch.zeros(0)


class Uneven(Numbered):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(WIDTH + index, dtype=torch.uint8), index


@pytest.mark.parametrize(
    ("dataset", "collate", "ins", "says"),
    [
        (Numbered(), ragged, ["x", "other"], "as many rows as each other"),
        (Numbered(), empty, ["x"], "at least one row"),
        (Uneven(), None, ["x"], "shapes"),
        (Numbered(), None, ["x", "label", "third"], "ins= names 3 items"),
    ],
)
def test_batches_that_cannot_be_asked_for(
    pair: list[FaultTeacher], dataset: Any, collate: Any, ins: list[str], says: str
) -> None:
    loader = loader_of(dataset, workers=1, collate_fn=collate)
    with (
        DistillReader(loader, ins=ins, predicts=["y"], teachers=named(pair)) as reader,
        pytest.raises(ConfigError, match=says),
    ):
        next(iter(reader))


def test_the_teachers_of_a_service_come_and_go(zookeeper: str) -> None:
    def member(service: str) -> TeacherProcess:
        return TeacherProcess("teacher_models:identity", "--zookeeper", zookeeper, "--service", service)

    ids = torch.arange(4000)
    pixels = torch.from_numpy(with_ids(np.zeros((4000, 3, 8, 8), np.uint8), ids.numpy()))
    loader = DataLoader(TensorDataset(pixels, ids), batch_size=8, num_workers=1)
    reader = DistillReader(loader, ins=["image"], predicts=["output"], no_teacher_timeout_s=30)
    reader.set_dynamic_teacher("ids", zookeeper=zookeeper)
    with reader, started(member("ids"), member("ids")) as (one, two):
        asked = False
        seen: list[int] = []
        for _, labels, outputs in reader:
            assert ids_of(outputs) == labels.tolist()
            seen += labels.tolist()
            by_teacher = reader.stats.by_teacher or {}
            if len(by_teacher) == 2 and not asked:
                one.leave()  # a second time would end it at once
                asked = True
            time.sleep(0.002)
        assert seen == list(range(4000))
        assert len(by_teacher) == 2
        assert one.wait() == 0
        assert two.process.poll() is None


def test_settings_that_cannot_be(pair: list[FaultTeacher]) -> None:
    with pytest.raises(ConfigError, match="teacher_batch_size must be at least 1"):
        DistillReader(ins=["x"], predicts=["y"]).set_teacher_batch_size(0)
    with pytest.raises(ConfigError, match="needs teachers"):
        next(iter(DistillReader(loader_of(), ins=["x"], predicts=["y"])))
    with pytest.raises(ConfigError, match="needs a loader"):
        next(iter(reader_of(pair, None)))
    with pytest.raises(ConfigError, match="reads one thing"):
        reader_of(pair, loader_of()).set_sample_generator(lambda: iter(()))
    with pytest.raises(ConfigError, match="unknown option"):
        reader_of(pair, loader_of(), colour="red")


def test_the_environment_and_a_file_point_elsewhere(
    pair: list[FaultTeacher], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "distill.toml"
    config.write_text(f'teachers = "{named(pair)}"\nteacher_batch_size = 3\n')
    monkeypatch.setenv("EDL_DISTILL_CONFIG", str(config))
    with DistillReader(loader_of(workers=0), ins=["x"], predicts=["y"], service="nobody") as reader:
        assert [n for batch in reader for n in check(*batch)] == list(range(50))
    monkeypatch.setenv("EDL_DISTILL_NOP", "1")
    with DistillReader(loader_of(), ins=["x"], predicts=["y"], predict_shapes={"y": (7,)}) as reader:
        for pixels, labels, zeros in reader:
            assert zeros.shape == (len(pixels), 7)
            assert not zeros.any()
            assert torch.equal(pixels, torch.stack([numbered(n) for n in labels.tolist()]))


def test_a_timeline_shows_where_the_time_went(pair: list[FaultTeacher], tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    with reader_of(pair, loader_of(), timeline=str(path)) as reader:
        assert len(list(reader)) == 7
    events = json.loads(path.read_text())
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert [names.count(name) for name in ("send", "infer", "receive")] == [7, 7, 7]
    assert "wait for teachers" in names
    assert all(event["dur"] >= 0 for event in events if event.get("ph") == "X")


def test_nothing_is_left_behind(pair: list[FaultTeacher]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with reader_of(pair, loader_of(Stream())) as reader:
            next(iter(reader))
            assert reader._session is not None
            assert reader._session.link is not None
            pid = reader._session.link.pid
        with reader_of(pair, loader_of()) as reader:
            next(iter(reader))
        gc.collect()
    assert not Path(f"/proc/{pid}").exists()
    assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(DistillError, match="was closed"):
        next(iter(reader))


def test_teachers_that_do_not_fit_are_one_sentence(pair: list[FaultTeacher]) -> None:
    def first(**options: Any) -> None:
        with DistillReader(loader_of(workers=0), **{**reader_options(teachers=named(pair)), **options}) as reader:
            next(iter(reader))

    with pytest.raises(Mismatch, match=r"has the outputs \['y'\] and not \['logits'\]"):
        first(predicts=["logits"])
    with pytest.raises(Mismatch, match=r"wants the input 'x', and ins= names only \['image'\]"):
        first(ins=["image"])
    with pytest.raises(Mismatch, match=r"of the shape \[4\], not \[10\]"):
        first(predict_shapes={"y": (10,)})
    with pytest.raises(Mismatch, match="wants 'x' as UINT8 and the loader yields INT64"):
        first(ins=[None, "x"])
    with pytest.raises(TeacherRefused, match="no model"):
        first(model="other")
    with pytest.raises(NoTeacher, match=r"no_teacher_timeout_s .* is 0.3"):
        first(teachers=f"127.0.0.1:{free_port()}", no_teacher_timeout_s=0.3)
    with teachers(("--hash", "h2"), ("--fault", "nan")) as (other, broken):
        with pytest.raises(Mismatch, match=r"have different models \(hash\): h1 and h2"):
            first(teachers=named([pair[0], other]))
        with pytest.raises(Mismatch, match="answers with NaN in 'y'"):
            first(teachers=named([broken]))
