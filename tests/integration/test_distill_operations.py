"""What operators do to teachers while a student reads: guard, freeze, drain and replace them."""

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_students import Numbered, check, named, reader_options, teachers
from teacher_models import ids_of, with_ids
from teacher_thread import TeacherThread
from teachers import TeacherProcess
from tls_files import write_tls_files
from torch.utils.data import DataLoader, TensorDataset

from distill.errors import Mismatch, NoTeacher, TeacherRefused
from distill.reader import DistillReader
from distill.records import TeacherRecord
from distill.teacher.config import parse_normalisation
from distill.teacher_client import TeacherClient
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.zk_store import ZkStore

pytestmark = pytest.mark.integration

TOKEN = "a token for tests"


def read(batches: Iterator[Any], count: int) -> list[int]:
    return [number for _ in range(count) for number in check(*next(batches))]


def images(samples: int) -> "DataLoader[Any]":
    ids = torch.arange(samples)
    pixels = torch.from_numpy(with_ids(np.zeros((samples, 3, 8, 8), np.uint8), ids.numpy()))
    return DataLoader(TensorDataset(pixels, ids), batch_size=8, num_workers=1)


def ids_read(reader: DistillReader) -> list[int]:
    """The ids of all samples, each of which must have its own predictions."""
    seen: list[int] = []
    for _, labels, outputs in reader:
        assert ids_of(outputs) == labels.tolist()
        seen += labels.tolist()
    return seen


def test_an_https_teacher_asks_the_io_process_for_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key, stranger = write_tls_files(tmp_path)
    monkeypatch.delenv("EDL_TEACHER_TOKEN", raising=False)

    def reader_of(teacher: TeacherThread, **options: Any) -> DistillReader:
        options = {"teachers": teacher.url, "ca_file": str(certificate), **options}
        return DistillReader(images(400), ins=["image"], predicts=["output"], **options)

    with TeacherThread(tls_cert=certificate, tls_key=key, token=TOKEN) as teacher:
        with reader_of(teacher, token=TOKEN, teacher_batch_size=3) as reader:
            assert ids_read(reader) == list(range(400))
        monkeypatch.setenv("EDL_TEACHER_TOKEN", TOKEN)
        with reader_of(teacher) as reader:
            assert ids_read(reader) == list(range(400))
        for wrong, words in (({"token": "wrong"}, "answered 401"), ({"ca_file": str(stranger)}, "is not trusted")):
            for preflight in (True, False):
                options: dict[str, Any] = {"preflight": preflight, "model": teacher.model, "no_teacher_timeout_s": 2.0}
                with (
                    reader_of(teacher, **(options | wrong)) as reader,
                    pytest.raises((TeacherRefused, NoTeacher), match=words if preflight else "401|certificate"),
                ):
                    next(iter(reader))


def test_without_hedges_a_frozen_teacher_is_given_up_at_the_deadline() -> None:
    loader = DataLoader(Numbered(4000), batch_size=8, num_workers=1)
    slow = ("--delay-ms", "5")
    with (
        teachers(slow, slow) as running,
        DistillReader(loader, **reader_options(teachers=named(running), hedge_share=0.0)) as reader,
    ):
        batches = iter(reader)
        numbers = read(batches, 40)
        running[0].process.send_signal(signal.SIGSTOP)
        gap_s = 0.0
        for _ in range(60):
            began_s = time.monotonic()
            numbers += read(batches, 1)
            gap_s = max(gap_s, time.monotonic() - began_s)
        assert 1.0 < gap_s < 30.0, "2 s, and what a busy machine adds"
        assert reader.stats.hedged == 0
        numbers += [number for batch in batches for number in check(*batch)]
        assert reader.stats.retried >= 1
        assert numbers == list(range(4000))
        running[0].process.send_signal(signal.SIGCONT)


class Listed:
    """Records of teachers in ZooKeeper, held by the test."""

    def __init__(self, store: ZkStore, service: str) -> None:
        self._store, self._service = store, service

    def put(self, name: str, url: str, *, version: int | None = None, **fields: Any) -> None:
        path = Paths().teacher(self._service, name)
        data = encode(TeacherRecord(teacher=name, url=url, model="m", rate=1000.0, **fields), path)
        if version is None:
            self._store.create(path, data, ephemeral=True)
        else:
            self._store.set(path, data, version)


@pytest.fixture
def store(zookeeper: str) -> Iterator[ZkStore]:
    with closing(ZkStore(zookeeper).start()) as found:
        yield found


def dynamic_reader(zookeeper: str, service: str, samples: int, **options: Any) -> DistillReader:
    loader = DataLoader(Numbered(samples), batch_size=8, num_workers=1)
    return DistillReader(loader, **reader_options(service=service, zookeeper=zookeeper, **options))


def test_a_teacher_that_joins_with_another_model_is_not_asked(zookeeper: str, store: ZkStore) -> None:
    listed = Listed(store, "strangers")
    with teachers((), ("--hash", "h2")) as (first, other):
        listed.put("first", f"http://{first.name}", model_hash="h1")
        with dynamic_reader(zookeeper, "strangers", 16000, no_teacher_timeout_s=4.0) as reader:
            batches = iter(reader)
            numbers = read(batches, 10)
            listed.put("other", f"http://{other.name}", model_hash="h2")
            deadline_s = time.monotonic() + 1.5
            while time.monotonic() < deadline_s:
                numbers += read(batches, 1)
                time.sleep(0.005)
            assert set(reader.stats.by_teacher or {}) == {"first"}
            first.kill()
            with pytest.raises(NoTeacher, match="other serves another model: its hash is h2, not h1"):
                read(batches, 1000)
        assert numbers == list(range(len(numbers)))


def test_a_teacher_that_drains_costs_no_retry() -> None:
    """Also where nobody but its answers says so: students that were given its address stop asking it."""
    with TeacherThread() as stays, TeacherThread() as leaves:
        both = f"{stays.url},{leaves.url}"
        with DistillReader(images(8000), ins=["image"], predicts=["output"], teachers=both) as reader:
            seen: list[int] = []
            for number, (_, labels, outputs) in enumerate(reader):
                assert ids_of(outputs) == labels.tolist()
                seen += labels.tolist()
                if number == 100:
                    leaves.server.leave()
                time.sleep(0.001)
            assert seen == list(range(8000))
            assert leaves.join(30.0)
            assert len(reader.stats.by_teacher or {}) == 2
            assert reader.stats.retried == 0


@pytest.mark.long  # half a minute of the compiler
def test_a_compiled_teacher_answers_as_the_model_does_for_any_number_of_samples(tmp_path: Path) -> None:
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    options = ("--mean", "0.5", "--std", "0.5", "--answer", "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), np.uint8)
    with (
        TeacherProcess("teacher_models:small", "--compile", *options, env=env) as compiled,
        TeacherThread(
            "teacher_models:small", normalisation=parse_normalisation("0.5", "0.5", 255.0), answer="fp32"
        ) as plain,
        TeacherClient(compiled.url, timeout_s=60.0) as fast,
        plain.client() as slow,
    ):
        assert compiled.model_hash == plain.service.identity.model_hash
        for rows in (1, 2, 7, 63, 64, 70):
            same, other = (c.infer("small", {"image": pixels[:rows]})[0]["output"] for c in (fast, slow))
            np.testing.assert_allclose(same, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", ["triton", "kserve"])
def test_servers_of_another_make_teach(make: str) -> None:
    """They tell no hash, do not say what they serve, and KServe writes null for what it leaves out."""
    loader = DataLoader(Numbered(), batch_size=8)
    with teachers(("--make", make)) as running:
        options = reader_options(teachers=named(running), teacher_batch_size=3)
        with DistillReader(loader, **options) as reader, pytest.raises(Mismatch, match="does not say which models"):
            next(iter(reader))
        with DistillReader(loader, **options, model="m") as reader:
            assert [number for batch in reader for number in check(*batch)] == list(range(50))


def test_a_teacher_that_is_frozen_from_the_start_holds_nobody_up() -> None:
    """Neither the check before the first batch nor the first requests, of which no latency is known."""
    loader = DataLoader(Numbered(400), batch_size=8)
    with teachers((), ()) as running:
        running[0].process.send_signal(signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            with DistillReader(loader, **reader_options(teachers=named(running))) as reader:
                assert [number for batch in reader for number in check(*batch)] == list(range(400))
            assert time.monotonic() - began_s < 60, "3 s for the check and 2 s for the first request"
        finally:
            running[0].process.send_signal(signal.SIGCONT)
