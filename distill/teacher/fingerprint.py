"""The model hash: teachers with the same hash give the same answers, but for the rounding of their hardware.

It covers the weights' bytes, where the model's code came from (for module:function its name and the text of its module;
for a file its contents), the arguments, and how it is served: inputs, normalisation, precision and the answer's dtype.
It does not cover what only rounding differs by: device, torch.compile, the batch size, the version of torch.
"""

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from distill.records import Normalisation
from distill.teacher.signature import InputSpec

#: hexadecimal digits of a model hash
DIGITS = 32


def of_bytes(data: bytes | bytearray) -> str:
    """Of a file, by its contents."""
    return hashlib.sha256(data).hexdigest()


def of_state(reference: str, arguments: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Of a model made by code: reference, the text of its module, arguments, and every tensor by name."""
    digest = hashlib.sha256(reference.encode())
    digest.update(_source(reference.partition(":")[0]).encode())
    digest.update(repr(sorted(arguments.items())).encode())
    for name, value in sorted(state.items()):
        if not isinstance(value, torch.Tensor):  # get_extra_state may give anything
            digest.update(f"{name}={value!r}".encode())
            continue
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)  # [numel]
        if flat.numel():
            digest.update(memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]  # numpy's stub
    return digest.hexdigest()


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError):  # built in, or made at run time
        return ""


def model_hash(
    fingerprint: str,
    inputs: Sequence[InputSpec],
    normalisation: Normalisation | None,
    precision: str,
    answer: str,
) -> str:
    """The hash that metadata, records and answers carry."""
    served = [[[spec.name, spec.datatype, spec.shape] for spec in inputs], normalisation, precision, answer]
    return hashlib.sha256(fingerprint.encode() + msgspec.json.encode(served)).hexdigest()[:DIGITS]
