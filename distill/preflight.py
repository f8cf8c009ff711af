"""Checks teachers before a student learns from them: one clear sentence now instead of a bad accuracy a day later.

Each teacher is asked for what it is, and answers a few rows of the student's first batch: twice the same, one row
alone, and, where it normalises pixels, the normalised floats too. A teacher that cannot be reached is left out, as
long as another one can; it is checked by its answers later (model hash, shapes, NaN).

Imports no torch. It does not wait for teachers to come: that is the caller's part.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from distill import oip
from distill.errors import Mismatch, NoTeacher, ProtocolError, TeacherUnavailable
from distill.io_messages import Go
from distill.records import Normalisation
from distill.source import Teacher
from distill.teacher_client import TeacherClient

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

#: rows that are asked for, and teachers that are asked at most
ROWS, MOST_TEACHERS, MOST_AT_ONCE = 4, 32, 8
TIMEOUT_S = 30.0
#: for the others, once one teacher has been found to fit: a frozen one must not hold the student up
GRACE_S = 3.0
#: how far answers may be from each other, as a part of the largest number in them: to the same request (rounding on a
#: GPU), and to the same row in another company (other kernels; a batch norm in training mode is far beyond)
SAME, ALONE = 2e-3, 5e-2
_FLOATS = frozenset({"FP16", "FP32", "FP64"})


@dataclass(frozen=True, slots=True)
class Demand:
    """What the student wants of its teachers; None: whatever they have."""

    predicts: tuple[str, ...]
    model: str | None = None
    token: str | None = None
    ca_file: str | None = None
    #: of one row of an output
    row_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    normalisation: Normalisation | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """What one teacher turned out to be."""

    name: str
    model: str
    model_hash: str | None
    feeds: tuple[str, ...]
    #: datatype and shape of a row of each output
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


def agree(teachers: Sequence[Teacher], batch: Mapping[str, Array], demand: Demand) -> Go:
    """Check teachers with rows of a batch, arrays [batch, ...] by the names of `ins`.

    Returns what is sent and what answers must be. Raises Mismatch when a teacher is not what the student needs or not
    what the others are, TeacherRefused when one refuses, NoTeacher when none can be reached.
    """
    rows = {name: np.ascontiguousarray(array[:ROWS]) for name, array in batch.items()}
    results = _try_all(teachers[:MOST_TEACHERS], rows, demand)
    found = [result for result in results if isinstance(result, _Found)]
    missing = [str(result) for result in results if isinstance(result, TeacherUnavailable)]
    if not found:
        raise NoTeacher("; ".join(missing))
    for reason in missing:
        logger.warning("preflight goes on without a teacher: %s", reason)
    first = found[0]
    for other in found[1:]:
        _compare(first, other)
    shapes: dict[str, tuple[int | None, ...]] = {name: shape for name, (_, shape) in first.outputs.items()}
    return Go(first.feeds, first.model, first.model_hash, shapes)


def _try_all(
    teachers: Sequence[Teacher], rows: Mapping[str, Array], demand: Demand
) -> list[_Found | TeacherUnavailable]:
    """What each is, in their order; once one has answered, the others have GRACE_S."""
    clients = [
        TeacherClient(teacher.url, token=demand.token, ca_file=demand.ca_file, timeout_s=TIMEOUT_S)
        for teacher in teachers
    ]
    pool = ThreadPoolExecutor(min(MOST_AT_ONCE, len(teachers)), "edl-preflight")
    tried = [
        pool.submit(_try, teacher, client, rows, demand) for teacher, client in zip(teachers, clients, strict=True)
    ]
    late: set[Future[_Found | TeacherUnavailable]] = set(tried)
    while late and not any(isinstance(one.result(), _Found) for one in tried if one not in late):
        late = wait(late, return_when=FIRST_COMPLETED).not_done
    late = wait(late, GRACE_S).not_done
    for client, one in zip(clients, tried, strict=True):
        if one in late:
            client.abort()
    pool.shutdown(wait=False, cancel_futures=True)
    return [
        TeacherUnavailable(f"teacher {teacher.url} has not answered {GRACE_S:g} s after another one")
        if one in late
        else one.result()
        for teacher, one in zip(teachers, tried, strict=True)
    ]


def _try(
    teacher: Teacher, client: TeacherClient, rows: Mapping[str, Array], demand: Demand
) -> _Found | TeacherUnavailable:
    try:
        with client:
            return _check(teacher, client, rows, demand)
    except TeacherUnavailable as error:
        return error
    except ProtocolError as error:
        raise Mismatch(f"teacher {teacher.teacher} does not speak the Open Inference Protocol: {error}") from error


def _check(teacher: Teacher, client: TeacherClient, rows: Mapping[str, Array], demand: Demand) -> _Found:
    name = f"teacher {teacher.teacher}"
    model = teacher.model or demand.model or _only_model(name, client)
    metadata = client.metadata(model)
    _check_outputs(name, metadata, demand)
    feeds = _check_inputs(name, metadata, rows)
    sent = {feed: rows[feed] for feed in feeds}
    answer, head = client.infer(model, sent, demand.predicts)
    outputs = _check_answer(name, answer, len(next(iter(sent.values()))), demand)
    _check_steady(name, model, client, sent, answer, demand)
    _check_normalisation(name, model, client, metadata, sent, answer, demand)
    model_hash = _agreed_hash(name, teacher.model_hash, metadata.parameters.get(oip.MODEL_HASH), head.model_hash)
    return _Found(name, model, model_hash, feeds, outputs)


def _only_model(name: str, client: TeacherClient) -> str:
    models = client.models()
    if len(models) != 1:
        there = f"serves the models {sorted(models)}" if models else "does not say which models it serves"
        raise Mismatch(f"{name} {there}: name one with model= (EDL_DISTILL_MODEL)")
    return models[0]


def _check_outputs(name: str, metadata: oip.ModelMetadata, demand: Demand) -> None:
    there = [output.name for output in metadata.outputs]
    lacking = [output for output in demand.predicts if output not in there]
    if there and lacking:
        raise Mismatch(f"{name} has the outputs {there} and not {lacking}: name some of them in predicts=")


def _check_inputs(name: str, metadata: oip.ModelMetadata, rows: Mapping[str, Array]) -> tuple[str, ...]:
    """Names of what is sent: the inputs that the teacher declares, or all that the student has if it declares none."""
    if not metadata.inputs:
        return tuple(rows)
    for declared in metadata.inputs:
        array = rows.get(declared.name)
        if array is None:
            raise Mismatch(f"{name} wants the input {declared.name!r}, and ins= names only {sorted(rows)}")
        datatype = oip.datatype_of(str(array.dtype))
        if datatype != declared.datatype and not _casts(metadata, declared.datatype, datatype):
            raise Mismatch(
                f"{name} wants {declared.name!r} as {declared.datatype} and the loader yields {datatype}: convert it "
                "in the dataset, or serve the teacher for what the loader yields"
            )
        if not _fits(array.shape[1:], declared.shape[1:]):
            raise Mismatch(
                f"{name} wants rows of {declared.name!r} of the shape {list(declared.shape[1:])} and the loader yields "
                f"{list(array.shape[1:])}"
            )
    return tuple(declared.name for declared in metadata.inputs)


def _casts(metadata: oip.ModelMetadata, declared: str, given: str) -> bool:
    """Whether the teacher takes floats for other floats, or normalised floats for the pixels that it normalises."""
    floats = given in _FLOATS
    return floats and (declared in _FLOATS or (declared == "UINT8" and _normalisation(metadata) is not None))


def _check_answer(
    name: str, answer: Mapping[str, Array], rows: int, demand: Demand
) -> dict[str, tuple[str, tuple[int, ...]]]:
    outputs = {}
    for output in demand.predicts:
        array = answer.get(output)
        if array is None:
            raise Mismatch(
                f"{name} answers with {sorted(answer)} and not with {output!r}: name some of them in predicts="
            )
        if array.shape[:1] != (rows,):
            raise Mismatch(f"{name} answers {rows} rows with {output!r} of the shape {list(array.shape)}")
        if array.dtype.kind == "f" and bool(np.isnan(array).any()):
            raise Mismatch(f"{name} answers with NaN in {output!r}: look at its model and at the inputs' normalisation")
        wanted = demand.row_shapes.get(output)
        if wanted is not None and tuple(wanted) != array.shape[1:]:
            raise Mismatch(
                f"{name} answers rows of {output!r} of the shape {list(array.shape[1:])}, not {list(wanted)}: has it "
                "other classes than the student?"
            )
        outputs[output] = (oip.datatype_of(str(array.dtype)), array.shape[1:])
    return outputs


def _check_steady(
    name: str, model: str, client: TeacherClient, sent: Mapping[str, Array], answer: Mapping[str, Array], demand: Demand
) -> None:
    """An evaluating model answers the same twice, and a row alone as in company."""
    again, _ = client.infer(model, sent, demand.predicts)
    alone, _ = client.infer(model, {key: array[-1:] for key, array in sent.items()}, demand.predicts)
    for output in demand.predicts:
        if not _close(answer[output], again[output], SAME):
            raise Mismatch(
                f"{name} answers two identical requests differently in {output!r}: its model is not in eval mode "
                "(dropout)"
            )
        if not _close(answer[output][-1:], alone[output], ALONE):
            raise Mismatch(
                f"{name} answers a row alone otherwise than among others in {output!r}: its model is not in eval mode "
                "(batch norm), or mixes the rows of a batch"
            )


def _check_normalisation(
    name: str,
    model: str,
    client: TeacherClient,
    metadata: oip.ModelMetadata,
    sent: Mapping[str, Array],
    answer: Mapping[str, Array],
    demand: Demand,
) -> None:
    """What the teacher says of its normalisation is what the student wants, and what it does."""
    declared = _normalisation(metadata)
    if demand.normalisation is not None and not demand.normalisation.same_as(declared):
        raise Mismatch(f"{name} normalises pixels by {declared} and the student wants {demand.normalisation}")
    pixels = [key for key, array in sent.items() if array.dtype == np.uint8 and array.ndim >= 2]
    if declared is None or not pixels:
        return
    floats = {key: _normalised(array, declared) if key in pixels else array for key, array in sent.items()}
    normalised, _ = client.infer(model, floats, demand.predicts)
    for output in demand.predicts:
        if not _close(answer[output], normalised[output], ALONE):
            raise Mismatch(
                f"{name} answers uint8 pixels otherwise than the same pixels normalised by what it declares, {declared}"
            )


def _normalisation(metadata: oip.ModelMetadata) -> Normalisation | None:
    said = metadata.parameters.get("normalisation")
    return None if said is None else msgspec.convert(said, Normalisation)


def _normalised(pixels: Array, normalisation: Normalisation) -> Array:
    """Pixels [rows, channels, ...] as floats."""
    channels = (1, -1, *[1] * (pixels.ndim - 2))
    mean, std = (np.asarray(v, np.float32).reshape(channels) for v in (normalisation.mean, normalisation.std))
    return np.ascontiguousarray((pixels.astype(np.float32) / normalisation.scale - mean) / std)


def _agreed_hash(name: str, registered: str | None, declared: Any, answered: str | None) -> str | None:
    said = {"registered": registered, "declared": declared, "answered": answered}
    told = {kind: digest for kind, digest in said.items() if digest is not None}
    if len(set(told.values())) > 1:
        raise Mismatch(f"{name} changes its model: the hashes are {told}")
    return next(iter(told.values()), None)


def _compare(first: _Found, other: _Found) -> None:
    for what, a, b in (
        ("models (hash)", first.model_hash, other.model_hash),
        ("model names", first.model, other.model),
        ("inputs", first.feeds, other.feeds),
        ("outputs", first.outputs, other.outputs),
    ):
        if a != b:
            raise Mismatch(f"{first.name} and {other.name} have different {what}: {a} and {b}")


def _close(a: Array, b: Array, part: float) -> bool:
    if a.shape != b.shape:
        return False
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)):
        return False
    largest = float(np.abs(x[finite]).max(initial=0.0))
    return bool((np.abs(x[finite] - y[finite]) <= part * largest + 1e-6).all())


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(d in (-1, s) for s, d in zip(shape, declared, strict=True))
