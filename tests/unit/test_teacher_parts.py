"""The pure parts of a teacher server: signatures, batches, heads, buffers, figures, settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import ConfigError
from distill.oip import ModelMetadata, TensorSpec
from distill.records import Normalisation
from distill.teacher.batching import Job, Queue, batch_length
from distill.teacher.buffers import ALIGNMENT, Buffers
from distill.teacher.command import build_config, read_token, serve
from distill.teacher.config import ServeConfig, parse_arguments, parse_gpu_ids, parse_inputs, parse_normalisation
from distill.teacher.http_head import Answer, parse_head
from distill.teacher.listing import Listing, Place
from distill.teacher.reports import metrics, statistics
from distill.teacher.signature import InputSpec, check_normalisation, parse_input
from distill.teacher.stats import BatchTimes, Stats, Totals, measured_rate
from edl_collective.coord.clock import ManualClock


def job(rows: int, shape: tuple[int, ...] = (3,), dtype: str = "uint8", arrived_s: float = 0.0) -> Job:
    return Job((np.zeros((rows, *shape), dtype),), rows, (), arrived_s, lambda job, outcome: None)


@pytest.mark.parametrize(
    ("jobs", "length"),
    [
        ([], 0),
        ([job(3)], 1),
        ([job(100)], 1),  # more than fit: alone, and split by its replica
        ([job(4), job(4), job(4)], 2),
        ([job(4), job(5), job(1)], 1),
        ([job(1), job(1, (4,)), job(1)], 1),
        ([job(1), job(1, dtype="float32")], 1),
        ([job(1)] * 9, 8),
    ],
)
def test_a_batch_is_the_longest_beginning_that_fits(jobs: list[Job], length: int) -> None:
    assert batch_length(jobs, 8) == length


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 2)), max_size=30), st.integers(1, 16))
def test_no_request_is_lost_doubled_or_overtaken(sizes: list[tuple[int, int]], max_batch: int) -> None:
    queue = Queue(ManualClock(), max_batch=max_batch, delay_s=0.0)
    jobs = [job(rows, (width,)) for rows, width in sizes]
    for item in jobs:
        queue.put(item)
    queue.close()
    taken: list[Job] = []
    while batch := queue.take():
        assert len(batch) == 1 or sum(item.rows for item in batch) <= max_batch
        assert len({item.shapes for item in batch}) == 1
        taken += batch
    assert list(map(id, taken)) == list(map(id, jobs))


def test_a_request_that_nobody_waits_for_leaves_the_queue_and_is_told() -> None:
    told: list[Any] = []
    queue = Queue(ManualClock(), max_batch=8, delay_s=0.0)
    gone = Job((np.zeros((2, 3)),), 2, (), 0.0, lambda job, outcome: told.append(outcome), cancelled=True)
    queue.put(gone)
    queue.close()
    assert queue.take() == []
    assert told == [[]]


def test_buffers_are_used_again_and_bounded() -> None:
    buffers = Buffers(1024 * 1024)
    first = buffers.take(300_000)
    assert first is not None
    assert len(first.view) >= 300_000
    assert np.frombuffer(first.view, np.uint8).ctypes.data % ALIGNMENT == 0
    assert buffers.take(900_000) is None
    buffers.give_back(first)
    assert buffers.take(300_000) is first
    buffers.give_back(first)
    assert buffers.used_bytes == 0
    assert buffers.take(900_000) is not None


@given(st.lists(st.integers(1, 3_000_000), max_size=20))
def test_a_buffer_is_large_enough_and_little_larger(sizes: list[int]) -> None:
    buffers = Buffers(2**40)
    for size in sizes:
        buffer = buffers.take(size)
        assert buffer is not None
        assert size <= len(buffer.view) <= max(size * 1.25 + 4096, 64 * 1024)
        buffers.give_back(buffer)


def test_inputs_are_declared_by_name_dtype_and_shape() -> None:
    assert parse_input("image:uint8:3,224,224") == InputSpec("image", "UINT8", (3, 224, 224))
    assert parse_input("ids:INT64:-1") == InputSpec("ids", "INT64", (-1,))
    assert parse_input("x:float16:") == InputSpec("x", "FP16", ())


@pytest.mark.parametrize(
    "text", ["", "image", "image:uint8", ":uint8:3", "x:uint8:3,a", "x:complex64:3", "x:uint32:3", "x:uint8:0",
             "x:uint8:-2", "x:uint8:1,1,1,1,1,1,1,1"],
)  # fmt: skip
def test_inputs_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--input"):
        parse_input(text)


def test_an_input_may_not_be_declared_twice() -> None:
    with pytest.raises(ConfigError, match="twice"):
        parse_inputs(("x:uint8:3", "x:uint8:3"))


IMAGE = (InputSpec("image", "UINT8", (3, 8, 8)),)


@pytest.mark.parametrize(
    ("inputs", "normalisation", "words"),
    [
        ((InputSpec("x", "FP32", (3,)),), Normalisation((0.5,), (1.0,)), "no --input is uint8"),
        (IMAGE, Normalisation((0.5, 0.5), (1.0,)), "--mean has 2 values"),
        (IMAGE, Normalisation((0.5,), (1.0, 1.0)), "--std has 2 values"),
        ((InputSpec("x", "UINT8", ()),), Normalisation((0.5, 0.5), (1.0,)), "--mean has 2 values"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(
    inputs: tuple[InputSpec, ...], normalisation: Normalisation, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_normalisation(normalisation, inputs)


def test_a_normalisation_comes_from_three_options() -> None:
    assert parse_normalisation(None, None, 255.0) is None
    assert parse_normalisation("0.5", None, 255.0) == Normalisation((0.5,), (1.0,))
    assert parse_normalisation("1,2,3", "4,5,6", 1.0) == Normalisation((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 1.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: parse_normalisation("a", None, 1.0), "--mean 'a'"),
        (lambda: parse_normalisation("nan", None, 1.0), "finite"),
        (lambda: parse_normalisation("0", "0", 1.0), "--std"),
        (lambda: parse_normalisation("0", "1", 0.0), "--scale"),
        (lambda: parse_normalisation("0,1", "1,1,1", 1.0), "--mean has 2"),
        (lambda: parse_arguments("[1]"), "--model-args"),
        (lambda: parse_arguments("{"), "--model-args"),
        (lambda: parse_gpu_ids("0,x"), "--gpu_ids"),
        (lambda: parse_gpu_ids("-1"), "--gpu_ids"),
        (lambda: ServeConfig(model="m", gpu_ids=(0, 0)), "names a GPU twice"),
        (lambda: ServeConfig(model="m", max_batch=0), "--max-batch is 0"),
        (lambda: ServeConfig(model="m", batch_delay_ms=-1.0), "--batch-delay-ms"),
        (lambda: ServeConfig(model="m", threads=-1), "--threads"),
        (lambda: ServeConfig(model="m", port=70000), "--port"),
        (lambda: ServeConfig(model="m", max_body_mb=2048), "--max-memory-mb is 1024"),
        (lambda: ServeConfig(model="m", tls_cert=Path("c")), "--tls-key go together"),
        (lambda: ServeConfig(model="m", zookeeper="z:1"), "--service go together"),
        (lambda: ServeConfig(model="m", zookeeper="z:1", service="a/b"), "cannot name a service"),
        (lambda: ServeConfig(model="m", zookeeper="z:1", service="s", teacher_id="a b"), "cannot name a teacher"),
        (lambda: ServeConfig(model="m", root="edl"), "root"),
    ],
)
def test_settings_that_cannot_work_are_named(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        wrong()


def test_a_teacher_is_reached_at_its_host_unless_it_says_otherwise() -> None:
    assert ServeConfig(model="m").url(80) == "http://127.0.0.1:80"
    assert ServeConfig(model="m", tls_cert=Path("c"), tls_key=Path("k")).url(80) == "https://127.0.0.1:80"
    assert ServeConfig(model="m", advertise="http://gpu7:1").url(80) == "http://gpu7:1"
    assert "0.0.0.0" not in ServeConfig(model="m", host="0.0.0.0").url(80)
    assert ServeConfig(model="m", worker="3").own_id(80) == "3"
    assert ServeConfig(model="m", teacher_id="t", worker="3").own_id(80) == "t"
    assert ServeConfig(model="m").own_id(80).endswith("-80")


def test_the_environment_tells_whose_process_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDL_JOB", "teach")
    monkeypatch.setenv("EDL_WORKER", "7")
    monkeypatch.setenv("EDL_ZOOKEEPER", "z:1")
    monkeypatch.setenv("EDL_TEACHER_TOKEN", "from the environment")
    alone = config_of("--model", "m")
    assert (alone.job, alone.worker, alone.zookeeper, alone.token) == ("teach", "7", None, "from the environment")
    listed = config_of("--model", "m", "--service", "s")
    assert (listed.zookeeper, listed.own_id(1)) == ("z:1", "7")
    file = tmp_path / "token"
    file.write_text(" secret\n")
    assert config_of("--model", "m", "--token-file", str(file)).token == "secret"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


def config_of(*arguments: str) -> ServeConfig:
    options = serve.make_context("serve", list(arguments)).params
    options.pop("log_level")
    return build_config(options)


def test_a_head_says_how_much_follows() -> None:
    text = (
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\nExpect: 100-Continue\r\n"
        b"Inference-Header-Content-Length: 10\r\nAuthorization: bearer abc\r\n\r\n"
    )
    head = parse_head(text)
    assert (head.method, head.path, head.body_bytes, head.json_bytes) == ("POST", "/v2/models/m/infer", 30, 10)
    assert (head.token, head.keep_alive, head.expects_continue) == ("abc", True, True)
    assert not parse_head(b"GET / HTTP/1.0\r\n\r\n").keep_alive
    assert not parse_head(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").keep_alive
    assert parse_head(b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n").path == "/"


def test_an_answer_says_how_much_follows() -> None:
    head = Answer(200, (b"{}", memoryview(b"abc")), json_bytes=2).head(keep_alive=False).decode()
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "Content-Length: 5\r\nInference-Header-Content-Length: 2\r\nConnection: close\r\n\r\n" in head


def test_figures_follow_from_what_ran() -> None:
    clock = ManualClock(100.0)
    stats = Stats(clock)
    assert stats.latency_s(0.5) is None
    stats.ran(BatchTimes(2, 64, begin_s=10.0, end_s=10.5), [9.9, 9.7])
    stats.ran(BatchTimes(1, 32, begin_s=11.0, end_s=11.25), [11.0])
    stats.failed(1)
    totals = stats.totals()
    assert (totals.answered, totals.failed, totals.samples, totals.batches) == (3, 1, 96, 2)
    assert (totals.busy_s, totals.at_s) == (0.75, 100.0)
    assert totals.queued_s == pytest.approx(0.4)
    assert totals.latency_s == pytest.approx(0.6 + 0.8 + 0.25)
    assert stats.latency_s(0.5) == pytest.approx(0.6)
    assert stats.latency_s(0.99) == pytest.approx(0.8)
    found = statistics(ModelMetadata("m", versions=("1",)), stats, 5)
    assert (found["inference_count"], found["execution_count"], found["edl"]["queue"]) == (96, 2, 5)
    assert found["inference_stats"]["compute_infer"] == {"count": 2, "ns": 750_000_000}
    assert [entry["batch_size"] for entry in found["batch_stats"]] == [32, 64]


def test_metrics_have_a_type_a_unit_and_a_label() -> None:
    stats = Stats(ManualClock(5.0))
    stats.ran(BatchTimes(1, 4, begin_s=1.0, end_s=1.5), [1.0])
    stats.sent(200, 10)
    text = metrics(ModelMetadata('a "b"', versions=("1",), parameters={"model_hash": "h"}), stats, 3, 2)
    lines = text.splitlines()
    assert 'edl_teacher_samples_total{model="a \\"b\\""} 4' in lines
    assert 'edl_teacher_answers_total{model="a \\"b\\"",status="200"} 1' in lines
    assert 'edl_teacher_latency_seconds{model="a \\"b\\"",quantile="0.99"} 0.5' in lines
    assert not any(line.startswith("edl_teacher_rate") for line in lines)  # not known yet
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {line.split("{")[0].removesuffix("_sum").removesuffix("_count") for line in lines if line[0] != "#"} <= named


@pytest.mark.parametrize(
    ("samples", "busy_s", "at_s", "known", "rate"),
    [
        (100, 0.0, 1.0, 50.0, 50.0),
        (100, 0.9, 2.0, 50.0, 50.0),  # 0.9 s of 4: no load
        (300, 3.0, 2.0, None, 200.0),  # 100 a second and replica
        (300, 3.0, 2.0, 100.0, 130.0),
        (0, 0.0, 0.0, None, None),
    ],
)
def test_a_rate_is_measured_only_under_load(
    samples: int, busy_s: float, at_s: float, known: float | None, rate: float | None
) -> None:
    assert measured_rate(Totals(), Totals(samples=samples, busy_s=busy_s, at_s=at_s), 2, known) == pytest.approx(rate)


def test_a_record_changes_only_when_a_figure_does() -> None:
    clock = ManualClock(0.0)
    stats = Stats(clock)
    metadata = ModelMetadata("m", (TensorSpec("x", "UINT8", (-1, 3)),), parameters={"model_hash": "h", "classes": 3})
    listing = Listing(Place("t", "http://h:1", "job", "7", 1.0), metadata, None, 1)
    first = listing.record(stats, 0, draining=False)
    assert (first.model_hash, first.classes, first.answered_rate, first.job) == ("h", 3, 0.0, "job")
    clock.advance(1.0)
    assert listing.record(stats, 0, draining=False) == first
    stats.ran(BatchTimes(1, 1000, begin_s=1.0, end_s=1.9), [1.0])
    clock.advance(1.0)
    second = listing.record(stats, 2, draining=True)
    assert (second.answered_rate, second.latency_p50_s, second.queue, second.draining) == (500.0, 0.9, 2, True)
    assert second.rate == 1100.0
    for _ in range(10):
        clock.advance(1.0)
        third = listing.record(stats, 0, draining=False)
    assert (third.answered_rate, third.rate) == (0.0, 1100.0)
