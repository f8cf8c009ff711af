"""Models from files and code: an exported program (.pt2), TorchScript (.pt, .ts), or module:function with weights.

What does not load is a ModelError of one sentence. A file of torch.jit or module:function is code that runs here, as
the user asked; weights are read without running any (torch.load with weights_only, safetensors, our checkpoints).
"""

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from checkpoints import CheckpointError, load_checkpoint
from distill.errors import ModelError
from distill.oip import datatype_of
from distill.teacher.files import read_url
from distill.teacher.fingerprint import of_bytes, of_state
from distill.teacher.signature import InputSpec

_SCRIPT_SUFFIXES = (".pt", ".ts", ".torchscript", ".jit")
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".th")
#: where a file of weights may keep them
_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode.

    Attributes:
        module: takes the inputs in order, gives a tensor, a sequence or a mapping of tensors.
        name: a short name for it.
        fingerprint: of its weights and of where its code came from, not of how it is served.
        inputs: what the file says that it takes; None: it does not say.
        whole: it is one graph, whose layers cannot be replaced.
    """

    module: nn.Module
    name: str
    fingerprint: str
    inputs: tuple[InputSpec, ...] | None = None
    whole: bool = False


def load_model(
    reference: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    checkpoint_state: str = "model",
) -> Loaded:
    """Load a model.

    Args:
        reference: file.pt2, file.pt, either also as a URL, or module:function.
        arguments: keyword arguments of the function.
        checkpoint: weights of module:function: a file of torch.save or safetensors, or a checkpoint folder; any URL.
        checkpoint_state: which state of a checkpoint folder holds the weights.

    Raises:
        ModelError: with one sentence, when any of it does not work.
    """
    suffix = os.path.splitext(reference)[1].lower()
    if suffix == ".pt2" or suffix in _SCRIPT_SUFFIXES:
        if checkpoint is not None or arguments:
            raise ModelError(f"{reference} holds its weights: --checkpoint and --model-args go with module:function")
        data = read_url(reference)
        return _exported(reference, data) if suffix == ".pt2" else _script(reference, data)
    if reference.count(":") != 1 or "/" in reference:
        raise ModelError(f"--model {reference!r} must be a .pt2 or .pt file, or module:function")
    return _from_code(reference, arguments or {}, checkpoint, checkpoint_state)


# ---- files -------------------------------------------------------------------------------------------------------


def _exported(reference: str, data: bytearray) -> Loaded:
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # it logs a traceback besides what it raises
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.load(io.BytesIO(data))
            module = program.module()
    except Exception as error:  # zipfile, json, torch: whatever a damaged file leads to
        raise ModelError(f"{reference} is not an exported program that loads: {short(error)}") from error
    training = _training_nodes(program.graph)
    if training:
        raise ModelError(
            f"{reference} was exported in training mode ({training[0]}): call model.eval() before the export"
        )
    return Loaded(module, _stem(reference), of_bytes(data), _declared(reference, program), whole=True)


#: operator -> where its arguments say that it trains
_TRAINING_ARGUMENTS = {
    "dropout": 2,
    "native_dropout": 2,
    "batch_norm": 5,
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
}


def _training_nodes(graph: torch.fx.Graph) -> list[str]:
    found = []
    for node in graph.nodes:
        name = getattr(node.target, "_opname", "")
        place = _TRAINING_ARGUMENTS.get(name)
        if place is not None and len(node.args) > place and node.args[place] is True:
            found.append(f"{name} trains")
    return found


def _declared(reference: str, program: torch.export.ExportedProgram) -> tuple[InputSpec, ...]:
    given = set(program.graph_signature.user_inputs)
    values: list[tuple[str, Any]] = [
        (node.name, node.meta["val"]) for node in program.graph.nodes if node.name in given
    ]
    specs: list[InputSpec] = []
    for name, value in values:
        if not isinstance(value, torch.Tensor) or not value.dim():
            raise ModelError(f"{reference} takes something else than batches of tensors as {name!r}")
        sizes: list[Any] = list(value.shape)  # int, or torch.SymInt for a size that is open
        if isinstance(sizes[0], int):
            raise ModelError(
                f"{reference} was exported for batches of exactly {sizes[0]}: export it with dynamic_shapes "
                "that leave the first size of each input open"
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in sizes[1:])
        specs.append(InputSpec(name, datatype_of(str(value.dtype).removeprefix("torch.")), shape))
    return tuple(specs)


def _script(reference: str, data: bytearray) -> Loaded:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated, and files of it are still about
            module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # RuntimeError mostly, of C++
        raise ModelError(
            f"{reference} is not TorchScript that loads: {short(error)} "
            "(a file of weights alone is --checkpoint, with --model module:function)"
        ) from error
    return Loaded(module.eval(), _stem(reference), of_bytes(data), whole=True)


# ---- code --------------------------------------------------------------------------------------------------------


def _from_code(reference: str, arguments: Mapping[str, Any], checkpoint: str | None, state_name: str) -> Loaded:
    module_name, _, function_name = reference.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        model = function(**arguments)
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"--model {reference} does not give a model: {short(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"--model {reference} gave a {type(model).__name__}, not a torch.nn.Module")
    if checkpoint is not None:
        _load_weights(model, checkpoint, state_name)
    model.eval()
    return Loaded(model, function_name, of_state(reference, dict(arguments), model.state_dict()))


def _load_weights(model: nn.Module, url: str, state_name: str) -> None:
    weights = _without_prefix(_weights(url, state_name))
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"the weights of {url} do not fit the model: {short(error)}") from error


def _weights(url: str, state_name: str) -> Mapping[str, Any]:
    suffix = os.path.splitext(url)[1].lower()
    try:
        if suffix == ".safetensors":
            return _safetensors(read_url(url))
        if suffix in _WEIGHT_SUFFIXES:
            found = torch.load(io.BytesIO(read_url(url)), map_location="cpu", weights_only=True)
            return _nested(found, url)
        return _from_checkpoint(url, state_name)
    except (ModelError, CheckpointError) as error:
        raise ModelError(str(error)) from error
    except Exception as error:  # zipfile, pickle, safetensors: whatever a damaged file leads to
        raise ModelError(f"{url} is not a file of weights that loads: {short(error)}") from error


def _safetensors(data: bytearray) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ModelError("weights of safetensors need its package: pip install safetensors") from error
    return load(bytes(data))


def _from_checkpoint(url: str, state_name: str) -> Mapping[str, Any]:
    loaded = load_checkpoint(url)
    if loaded is None:
        raise ModelError(f"there is no checkpoint in {url}; `edl ckpt ls {url}` shows what is")
    if state_name not in loaded.state:
        raise ModelError(
            f"the checkpoint in {url} has the states {sorted(loaded.state)}: name one with --checkpoint-state"
        )
    return _nested(loaded.state[state_name], url)


def _nested(found: Any, url: str) -> Mapping[str, Any]:
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise ModelError(f"{url} holds a {type(found).__name__}, not the weights of a model by name")
    return found


def _without_prefix(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Names as the bare model has them: DistributedDataParallel and torch.compile put theirs in front."""
    for prefix in ("module.", "_orig_mod."):
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _stem(reference: str) -> str:
    return os.path.splitext(os.path.basename(reference))[0]


def short(error: BaseException, limit: int = 300) -> str:
    """A foreign error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'...' if len(text) > limit else ''}"
