"""Statistics as the protocol's extension has them, and metrics as Prometheus reads them. [pure]"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distill.exposition import family, label_text
from distill.oip import ModelMetadata

if TYPE_CHECKING:
    from distill.teacher.stats import Stats, Totals

_NS = 1_000_000_000


def statistics(metadata: ModelMetadata, stats: "Stats", queue: int) -> dict[str, Any]:
    """Answer to GET /v2/models/<name>/stats: Triton's fields, and ours under "edl"."""
    totals = stats.totals()
    return {
        "name": metadata.name,
        "version": metadata.versions[0],
        "last_inference": int(stats.last_answer_s * 1000),
        "inference_count": totals.samples,
        "execution_count": totals.batches,
        "inference_stats": {
            "success": _duration(totals.answered, totals.latency_s),
            "fail": _duration(totals.failed, 0.0),
            "queue": _duration(totals.answered, totals.queued_s),
            "compute_infer": _duration(totals.batches, totals.busy_s),
        },
        "batch_stats": [
            {"batch_size": rows, "compute_infer": {"count": count}} for rows, count in stats.batch_rows().items()
        ],
        "edl": {
            "latency_p50_s": stats.latency_s(0.5),
            "latency_p99_s": stats.latency_s(0.99),
            "queue": queue,
            "rate_samples_per_s": stats.rate,
        },
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * _NS)}


def metrics(metadata: ModelMetadata, stats: "Stats", queue: int, connections: int) -> str:
    """Answer to GET /metrics."""
    return "\n".join(_lines(metadata, stats, stats.totals(), queue, connections)) + "\n"


def _lines(metadata: ModelMetadata, stats: "Stats", totals: "Totals", queue: int, connections: int) -> Iterator[str]:
    label = {"model": metadata.name}
    statuses = [({**label, "status": str(status)}, n) for status, n in stats.statuses().items()]
    yield from family("edl_teacher_answers_total", "counter", "answers of any kind, by HTTP status", statuses)
    for name, kind, text, value in (
        ("samples_total", "counter", "samples that the model answered", totals.samples),
        ("batches_total", "counter", "batches that the model ran", totals.batches),
        ("model_failures_total", "counter", "requests that the model failed on", totals.failed),
        ("model_busy_seconds_total", "counter", "seconds that replicas were busy, together", totals.busy_s),
        ("queue_seconds_total", "counter", "seconds that requests waited for a replica", totals.queued_s),
        ("received_bytes_total", "counter", "bytes of requests", stats.received_bytes),
        ("sent_bytes_total", "counter", "bytes of answers", stats.sent_bytes),
        ("queue_requests", "gauge", "requests that wait for a replica", queue),
        ("connections", "gauge", "open connections", connections),
        ("rate_samples_per_second", "gauge", "samples a second that it can answer", stats.rate),
    ):
        yield from family(f"edl_teacher_{name}", kind, text, [(label, value)])
    yield from _latency(label, stats, totals)
    of_model = {**label, "model_hash": str(metadata.parameters.get("model_hash", ""))}
    yield from family("edl_teacher_info", "gauge", "which model it is", [(of_model, 1)])


def _latency(label: Mapping[str, str], stats: "Stats", totals: "Totals") -> Iterator[str]:
    name = "edl_teacher_latency_seconds"
    yield f"# HELP {name} from the arrival of a request to its answer; quantiles of the newest"
    yield f"# TYPE {name} summary"
    for quantile in (0.5, 0.99):
        value = stats.latency_s(quantile)
        labels = label_text({**label, "quantile": str(quantile)})
        yield f"{name}{labels} {'NaN' if value is None else f'{value:.6g}'}"
    yield f"{name}_sum{label_text(label)} {totals.latency_s:.6g}"
    yield f"{name}_count{label_text(label)} {totals.answered}"
