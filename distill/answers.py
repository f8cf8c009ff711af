"""What is asked of a teacher for a part of a batch, and whether what it answered is an answer. Imports no torch.

An answer is refused (WrongAnswer) when its shape, its model hash or a NaN in it says that it must not be learned from.
Nothing here sends or receives.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np

from distill import oip
from distill.errors import DistillError, ProtocolError
from distill.io_messages import Go, Part
from distill.source import Teacher


class WrongAnswer(DistillError):
    """Raised when a teacher's answer must not be used."""


class Output(NamedTuple):
    """One output of an answer; `data` is valid as long as the answer is."""

    datatype: str
    #: [rows, ...]
    shape: tuple[int, ...]
    data: memoryview


class Asking:
    """Makes requests and checks answers by what `go` demands: all that preflight agreed on with the teachers."""

    def __init__(self, go: Go, predicts: Sequence[str], token: str | None, model: str | None = None) -> None:
        self._go = go
        self._predicts = tuple(predicts)
        self._wanted = tuple(oip.WantedOutput(name, {"binary_data": True}) for name in predicts)
        self._model = go.model or model
        self._authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        #: heads of requests do not change from batch to batch
        self._heads: dict[tuple[Any, ...], bytes] = {}

    def get(self, teacher: Teacher, path: str) -> bytes:
        """A request for a page of the teacher, without a body."""
        return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(teacher.url).netloc}\r\n{self._authorization}\r\n".encode()

    def feeds(self, parts: Sequence[Part]) -> list[Part]:
        """The parts of a batch that are sent."""
        return [part for part in parts if part.name in self._go.feeds]

    def head(self, teacher: Teacher, parts: Sequence[Part], rows: int) -> bytes:
        """HTTP and JSON head of a request for `rows` rows of `parts`; the tensors' bytes follow it."""
        key = (teacher.url, teacher.model, rows, *((p.name, p.datatype, p.shape[1:]) for p in parts))
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) > 1000:  # batches of all sizes
                self._heads.clear()
            head = self._heads[key] = self._make_head(teacher, parts, rows)
        return head

    def _make_head(self, teacher: Teacher, parts: Sequence[Part], rows: int) -> bytes:
        inputs = tuple(oip.binary(part.name, part.datatype, (rows, *part.shape[1:])) for part in parts)
        body = oip.encode(oip.InferRequest(inputs, self._wanted))
        length = len(body) + sum(tensor.size_bytes for tensor in inputs)
        model = teacher.model or self._model or ""
        return (
            f"POST /v2/models/{quote(model, safe='')}/infer HTTP/1.1\r\nHost: {urlsplit(teacher.url).netloc}\r\n"
            f"Content-Type: application/octet-stream\r\n{self._authorization}"
            f"{oip.HEADER_LENGTH}: {len(body)}\r\nContent-Length: {length}\r\n\r\n"
        ).encode() + body

    def check(self, teacher: Teacher, head_bytes: int | None, body: memoryview, rows: int) -> list[Output]:
        """The outputs that the student wants, in its order. Raises WrongAnswer."""
        size = len(body) if head_bytes is None else head_bytes
        if size > len(body):
            raise WrongAnswer(f"says that the head of its answer has {size} of {len(body)} bytes")
        try:
            answer = oip.decode_response(body[:size], len(body) - size)
        except ProtocolError as error:
            raise WrongAnswer(f"sent no answer of the protocol: {error}") from error
        self._check_hash(teacher, answer)
        places = oip.split(answer.outputs)
        found = {tensor.name: (tensor, place) for tensor, place in zip(answer.outputs, places, strict=True)}
        outputs = []
        for name in self._predicts:
            if name not in found:
                raise WrongAnswer(f"sent the outputs {sorted(found)} without {name!r}")
            tensor, place = found[name]
            data = _in_json(tensor) if place is None else body[size + place[0] : size + place[1]]
            self._check(tensor, data, rows)
            outputs.append(Output(tensor.datatype, tensor.shape, data))
        return outputs

    def _check_hash(self, teacher: Teacher, answer: oip.InferResponse) -> None:
        # What was agreed on counts: a teacher that came later may be listed with another model.
        wanted = self._go.model_hash or teacher.model_hash
        if wanted is not None and answer.model_hash != wanted:
            raise WrongAnswer(f"answers with another model: its hash is {answer.model_hash}, not {wanted}")

    def _check(self, tensor: oip.TensorHead, data: memoryview, rows: int) -> None:
        if tensor.shape[:1] != (rows,):
            raise WrongAnswer(f"sent {tensor.name!r} of shape {list(tensor.shape)} for {rows} rows")
        expected = self._go.row_shapes.get(tensor.name)
        if expected is not None and not _fits(tensor.shape[1:], expected):
            raise WrongAnswer(f"sent rows of {tensor.name!r} of shape {list(tensor.shape[1:])}, not {list(expected)}")
        if has_nan(tensor.datatype, data):
            raise WrongAnswer(f"sent NaN in {tensor.name!r}")


def has_nan(datatype: str, data: memoryview) -> bool:
    """Whether any number of a tensor is NaN; infinities are fine (masked classes)."""
    if datatype == "FP16":
        # half-precision arithmetic is slow, the comparison of bits is not; the sum shifts the sign out
        bits = np.frombuffer(data, np.uint16)
        return bool((bits + bits).max(initial=0) > 0xF800)
    if datatype in ("FP32", "FP64"):
        return bool(np.isnan(np.frombuffer(data, oip.DATATYPES[datatype][1])).any())
    return False


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))


def _in_json(tensor: oip.TensorHead) -> memoryview:
    """The bytes of a tensor whose values stand in the head, as servers without the binary extension send them."""
    try:
        values = np.asarray(tensor.data, oip.DATATYPES[tensor.datatype][1]).reshape(tensor.shape)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise WrongAnswer(f"sent values of {tensor.name!r} that are no {tensor.datatype}: {error}") from error
    return memoryview(np.ascontiguousarray(values).tobytes())
