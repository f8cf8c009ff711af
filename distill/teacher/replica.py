"""One copy of the model on one device: from the arrays of a batch to the outputs of each of its requests.

uint8 inputs are normalised here, (pixel / scale - mean) / std per channel, computed in float32 as pixel * a + b
and then cast to the model's precision. Invariant: an answer has as many rows as its request.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.errors import ConfigError, ModelError
from distill.records import Normalisation
from distill.teacher.batching import Job, Outputs
from distill.teacher.loading import Loaded, short
from distill.teacher.signature import InputSpec, Serving, Wanted
from distill.teacher_client import Array

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
ANSWERS = {"fp16": torch.float16, "fp32": torch.float32}


def prepare(loaded: Loaded, precision: str, *, on_gpu: bool) -> nn.Module:
    """The module in the precision asked for, on the CPU. Raises ModelError, ConfigError."""
    if precision == "int8":
        return _quantised(loaded, on_gpu)
    module = loaded.module
    if precision != "fp32":
        try:
            module = module.to(PRECISIONS[precision])
        except RuntimeError as error:
            raise ModelError(f"the model cannot be cast to {precision}: {short(error)}") from error
    return module


def _quantised(loaded: Loaded, on_gpu: bool) -> nn.Module:
    if on_gpu:
        raise ConfigError("--precision int8 runs on CPUs only: use fp16 or bf16 with --gpu_ids")
    if loaded.whole or not any(isinstance(part, nn.Linear) for part in loaded.module.modules()):
        raise ModelError(
            "--precision int8 quantises the Linear layers of a model made by module:function, and this has none"
        )
    with warnings.catch_warnings(action="ignore"):  # deprecated in favour of a package of its own, and still here
        quantised: nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            loaded.module, {nn.Linear}, dtype=torch.qint8
        )
    return quantised


def replicas(module: nn.Module, devices: Sequence[str], serving: Serving, *, compiled: bool) -> list["Replica"]:
    """One replica per device."""
    copies = [module if index == 0 else copy.deepcopy(module) for index in range(len(devices))]
    return [
        Replica(part, torch.device(device), serving, compiled=compiled)
        for part, device in zip(copies, devices, strict=True)
    ]


class Replica:
    """A module on a device. `run` is for one thread at a time."""

    def __init__(self, module: nn.Module, device: torch.device, serving: Serving, *, compiled: bool = False) -> None:
        self.device = device
        self._serving = serving
        try:
            module = module.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"the model cannot be put on {device}: {short(error)}") from error
        self._module: Any = torch.compile(module, dynamic=True) if compiled else module
        self._dtype = PRECISIONS[serving.precision]
        self._pixels = [_pixels(spec, serving.normalisation, device) for spec in serving.inputs]
        self.names = serving.names

    def run(self, jobs: Sequence[Job]) -> list[Outputs]:
        """The answers to a batch, in its order. Raises ModelError when the model fails or answers in a wrong shape."""
        with torch.inference_mode():
            inputs = [_joined([job.arrays[index] for job in jobs]) for index in range(len(self._serving.inputs))]
            outputs = self.forward(inputs)
            answers: list[Outputs] = []
            begin = 0
            for job in jobs:
                answers.append([self._answer(outputs[w.index][begin : begin + job.rows], w) for w in job.wanted])
                begin += job.rows
            return answers

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of a batch of any size, [rows, ...] each, in parts of at most max_batch rows."""
        rows, most = inputs[0].shape[0], self._serving.max_batch
        if rows <= most:
            return self._part(inputs)
        parts = [self._part([x[begin : begin + most] for x in inputs]) for begin in range(0, rows, most)]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def _part(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        prepared = [self._prepared(x, index) for index, x in enumerate(inputs)]
        try:
            outputs = self._module(*prepared)
        except Exception as error:  # the model is the user's code
            bytes_too = any(x.dtype == torch.uint8 for x in prepared)
            hint = "; without --mean and --std it gets uint8 as bytes, not as floats" if bytes_too else ""
            raise ModelError(
                f"the model failed on inputs of {[list(x.shape) for x in inputs]}: {short(error)}{hint}"
            ) from error
        return self._checked(outputs, inputs[0].shape[0])

    def _prepared(self, x: Tensor, index: int) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        pixels = self._pixels[index]
        if x.dtype == torch.uint8:
            if pixels is None:
                return x
            scale, shift = pixels
            return torch.addcmul(shift, x.to(torch.float32), scale).to(self._dtype)
        return x.to(self._dtype) if x.is_floating_point() else x

    def _checked(self, outputs: Any, rows: int) -> list[Tensor]:
        if isinstance(outputs, Mapping):
            self.names = self.names or tuple(map(str, outputs))
            missing = [name for name in self.names if name not in outputs]
            if missing:
                raise ModelError(f"the model has no output {missing[0]!r}, only {list(outputs)}")
            outputs = [outputs[name] for name in self.names]
        found = [outputs] if isinstance(outputs, Tensor) else list(outputs) if isinstance(outputs, tuple | list) else []
        self.names = self.names or _default_names(len(found))
        if len(found) != len(self.names) or not found:
            raise ModelError(f"the model gave {len(found)} tensors for the outputs {list(self.names)}: see --output")
        for name, tensor in zip(self.names, found, strict=True):
            if not isinstance(tensor, Tensor) or not tensor.dim() or tensor.shape[0] != rows:
                shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ModelError(
                    f"output {name!r} has the shape {shape} for {rows} samples: its first size must be {rows}"
                )
        return found

    def _answer(self, x: Tensor, wanted: Wanted) -> tuple[Array, Array | None]:
        """Values on the host, and the indices of a top-k, sorted from the largest."""
        indices = None
        if wanted.top_k is not None:
            x, indices = x.topk(wanted.top_k, dim=-1)  # [rows, ..., k] both
        if x.is_floating_point():
            x = x.to(ANSWERS[self._serving.answer])
        return _on_host(x), None if indices is None else _on_host(indices.to(torch.int32))


def _default_names(count: int) -> tuple[str, ...]:
    return tuple("output" if index == 0 else f"output_{index}" for index in range(count))


def _joined(arrays: Sequence[Array]) -> Tensor:
    tensors = [torch.from_numpy(array) for array in arrays]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _on_host(x: Tensor) -> Array:
    array: Array = np.ascontiguousarray(x.cpu().numpy())
    return array


def _pixels(spec: InputSpec, normalisation: Normalisation | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Factor and summand of each channel, [1, channels, 1, ...], so that normalising is pixel * factor + summand."""
    if normalisation is None or spec.datatype != "UINT8":
        return None
    mean = torch.tensor(normalisation.mean, dtype=torch.float64)  # [channels] or [1]
    std = torch.tensor(normalisation.std, dtype=torch.float64)
    shape = (1, -1, *([1] * (len(spec.shape) - 1))) if spec.shape else (-1,)
    factor = (1.0 / (normalisation.scale * std)).expand_as(mean + std).reshape(shape)
    summand = (-mean / std).reshape(shape)
    return factor.to(device, torch.float32), summand.to(device, torch.float32)
