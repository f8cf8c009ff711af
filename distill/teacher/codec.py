"""Between bytes of the protocol and the arrays of a job: nothing is copied that need not be.

Invariant: arrays of a request are views of its buffer, aligned and writable, or hold values that stood in its head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill import oip
from distill.teacher.batching import Outputs
from distill.teacher.http_head import Answer
from distill.teacher.signature import Serving, Wanted, match_inputs, match_outputs
from distill.teacher_client import Array, from_data


@dataclass(frozen=True, slots=True)
class Question:
    """A request that fits the model: `arrays` in the order of its inputs, [rows, ...]."""

    id: str
    arrays: tuple[Array, ...]
    rows: int
    wanted: tuple[Wanted, ...]


def read_question(
    body: memoryview, json_bytes: int | None, serving: Serving, outputs: Sequence[oip.TensorSpec]
) -> Question:
    """The question in a request's body. Raises ProtocolError."""
    length = len(body) if json_bytes is None else json_bytes
    request = oip.decode_request(body[:length], len(body) - length)
    order, rows = match_inputs(request.inputs, serving.inputs, normalised=serving.normalisation is not None)
    wanted = match_outputs(request.outputs, outputs, request.parameters)
    places = oip.split(request.inputs)
    arrays = tuple(_array(request.inputs[index], body, length, places[index]) for index in order)
    return Question(request.id, arrays, rows, wanted)


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
