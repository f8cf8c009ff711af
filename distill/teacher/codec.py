"""Between bytes of the protocol and the arrays of a job: nothing is copied that need not be.

Invariant: arrays of a request are views of its buffer, aligned and writable, or hold values that stood in its head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from distill import oip
from distill.teacher.batching import Outputs
from distill.teacher.http_head import Answer
from distill.teacher.signature import Serving, Wanted, match_inputs, match_outputs
from distill.teacher_client import Array, from_data

#: longer heads hold values and do not come again
_MOST_KEPT_BYTES = 4096
_KEPT = 256


@dataclass(frozen=True, slots=True)
class Question:
    """A request that fits the model: `arrays` in the order of its inputs, [rows, ...]."""

    id: str
    arrays: tuple[Array, ...]
    rows: int
    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class _Form:
    """All of a question but the bytes of its tensors."""

    id: str
    rows: int
    wanted: tuple[Wanted, ...]
    #: in the order of the model's inputs, with their places after the head
    tensors: tuple[tuple[oip.TensorHead, tuple[int, int] | None], ...]


class QuestionReader:
    """Reads requests for one model. A client sends the same head again and again: what follows from it is kept."""

    def __init__(self, serving: Serving, outputs: Sequence[oip.TensorSpec]) -> None:
        self._serving = serving
        self._outputs = outputs
        self._kept_form = lru_cache(_KEPT)(self._form)

    def read(self, body: memoryview, json_bytes: int | None) -> Question:
        """The question in a request's body. Raises ProtocolError."""
        length = len(body) if json_bytes is None else json_bytes
        read_form = self._kept_form if length <= _MOST_KEPT_BYTES else self._form
        form = read_form(bytes(body[:length]), len(body) - length)
        arrays = tuple(_array(tensor, body, length, place) for tensor, place in form.tensors)
        return Question(form.id, arrays, form.rows, form.wanted)

    def _form(self, head: bytes, rest_bytes: int) -> _Form:
        request = oip.decode_request(head, rest_bytes)
        serving = self._serving
        order, rows = match_inputs(request.inputs, serving.inputs, normalised=serving.normalisation is not None)
        wanted = match_outputs(request.outputs, self._outputs, request.parameters)
        places = oip.split(request.inputs)
        return _Form(request.id, rows, wanted, tuple((request.inputs[index], places[index]) for index in order))


def _array(tensor: oip.TensorHead, body: memoryview, begin: int, place: tuple[int, int] | None) -> Array:
    if place is None:
        return from_data(tensor)
    dtype = np.dtype(oip.DATATYPES[tensor.datatype][1])
    count = tensor.size_bytes // dtype.itemsize
    if dtype.kind == "b":  # any byte may come, and a bool of 2 is neither true nor false
        return np.frombuffer(body, np.uint8, count, begin + place[0]).reshape(tensor.shape).astype(np.bool_)
    array = np.frombuffer(body, dtype, count, begin + place[0]).reshape(tensor.shape)
    return array if array.flags.aligned else array.copy()


def write_answer(
    name: str, version: str, question_id: str, wanted: Sequence[Wanted], outputs: Outputs, parameters: oip.Parameters
) -> Answer:
    """The answer with `outputs`, in the order of `wanted`; binary ones are sent from where they lie."""
    heads: list[oip.TensorHead] = []
    parts: list[memoryview] = []
    for want, (values, indices) in zip(wanted, outputs, strict=True):
        _add(want.name, values, want.binary, heads, parts)
        if indices is not None:
            _add(f"{want.name}_indices", indices, want.binary, heads, parts)
    head = oip.encode(oip.InferResponse(name, tuple(heads), version, question_id, parameters))
    if not parts:
        return Answer(200, (head,))
    return Answer(200, (head, *parts), "application/octet-stream", len(head))


def _add(name: str, values: Array, binary: bool, heads: list[oip.TensorHead], parts: list[memoryview]) -> None:
    datatype = oip.datatype_of(str(values.dtype))
    if binary:
        heads.append(oip.binary(name, datatype, values.shape))
        parts.append(memoryview(values.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]  # numpy's stub
        return
    data: list[Any] = values.reshape(-1).tolist()
    heads.append(oip.TensorHead(name, datatype, values.shape, data=data))
