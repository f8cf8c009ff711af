"""A state taken apart into plain JSON and tensors, and put together again: no pickle on either way.

A state is what `state_dict()` gives: dicts, lists, tuples, None, bool, int, float, str, bytes, tensors and numpy arrays
in any nesting. Anything else is refused with its path, never pickled.

JSON of a node: null, true, "text" and numbers stand for themselves; an object has one key that says what it is
("dict", "ordered", "counter", "list", "tuple", "tensor", "array", "float", "bytes").
Torch is not imported here: a state without tensors is stored and read without it.
"""

from __future__ import annotations

import base64
import math
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from checkpoints.errors import StateNotSupported

#: Takes the name of a stored tensor, gives the tensor.
Fetch = Callable[[str], Any]

#: What a file of safetensors calls something else than a tensor.
RESERVED = "__metadata__"
#: JSON readers refuse numbers of more than 4,300 digits, as a protection.
_LONGEST_INT_BITS = 14_000
#: What is saved can be read again without reaching the limit of recursion.
_DEEPEST = 100


def flatten(state: Any, name: str = "") -> tuple[Any, dict[str, Any]]:
    """The JSON tree of a state, and its tensors by name.

    A tensor's name is its path in the state, so the file of a model's state dict has the model's own names. Two entries
    that are the same memory (tied weights) become one tensor.

    Args:
        state: what `state_dict()` gave.
        name: of the state, for messages.

    Raises:
        StateNotSupported: naming the path and type of a value that is none of the above.
    """
    builder = _Flattener(name)
    return builder.node(state, ()), builder.tensors


class _Flattener:
    def __init__(self, name: str) -> None:
        self.tensors: dict[str, Any] = {}
        self._name = name
        self._names: dict[tuple[Any, ...], str] = {}
        self._torch = sys.modules.get("torch")
        self._numpy = sys.modules.get("numpy")

    def node(self, value: Any, path: tuple[str, ...]) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)  # of an enumeration that is a string, str() would give the name of the member
        if isinstance(value, int):
            return self._int(int(value), path)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": base64.b64encode(value).decode()}
        if self._torch is not None and isinstance(value, self._torch.Tensor):
            self._check_plain(value, path)
            return {"tensor": self._keep(value.detach(), path)}
        if self._numpy is not None and isinstance(value, (self._numpy.ndarray, self._numpy.generic)):
            return self._numpy_node(value, path)
        return self._container(value, path)

    def _check_plain(self, tensor: Any, path: tuple[str, ...]) -> None:
        """Refuse a tensor that is not simply its elements in memory: sparse, distributed, quantized, still empty."""
        torch = self._torch
        assert torch is not None, "there is a tensor"
        plain = type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        plain = plain and tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
        if not plain or tensor.device.type == "meta" or torch.nn.parameter.is_lazy(tensor):
            what = f"a {type(tensor).__name__} ({tensor.layout}, {tensor.dtype}, on {tensor.device})"
            raise self._refused(path, f"{what} cannot be stored; make it a dense tensor")

    def _refused(self, path: tuple[str, ...], why: str) -> StateNotSupported:
        return StateNotSupported(f"state {'.'.join((self._name, *path)) if self._name else '.'.join(path)}: {why}")

    def _int(self, value: int, path: tuple[str, ...]) -> int:
        if value.bit_length() > _LONGEST_INT_BITS:
            raise self._refused(path, f"an integer of {value.bit_length()} bits cannot be stored")
        return value

    def _container(self, value: Any, path: tuple[str, ...]) -> Any:
        if len(path) > _DEEPEST:
            raise self._refused(path[:3], f"it holds itself, or is nested more than {_DEEPEST} levels deep")
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if type(value) is list:
            return {"list": [self.node(item, (*path, str(i))) for i, item in enumerate(value)]}
        if isinstance(value, tuple):
            # torch.Size and named tuples come back as plain tuples.
            return {"tuple": [self.node(item, (*path, str(i))) for i, item in enumerate(value)]}
        raise self._refused(
            path,
            f"{type(value).__name__} cannot be stored without pickling it; turn it into dicts, lists, numbers, strings "
            "or tensors",
        )

    def _mapping(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        kinds = {dict: "dict", defaultdict: "dict", OrderedDict: "ordered", Counter: "counter"}
        kind = kinds.get(type(value))
        if kind is None:
            raise self._refused(path, f"{type(value).__name__} is not a plain dict; give dict(...) of it")
        pairs = [[self._key(key, path), self.node(item, (*path, _text(key)))] for key, item in value.items()]
        # Modules keep the versions of their buffers in an attribute of the state dict.
        metadata = getattr(value, "_metadata", None)
        node: dict[str, Any] = {kind: pairs}
        if metadata is not None:
            node["metadata"] = self.node(metadata, (*path, "_metadata"))
        return node

    def _key(self, key: Any, path: tuple[str, ...]) -> Any:
        if key is None or isinstance(key, (bool, int, str, float, tuple)):
            return self.node(key, path)
        raise self._refused(path, f"a key of type {type(key).__name__} cannot be stored")

    def _numpy_node(self, value: Any, path: tuple[str, ...]) -> Any:
        if value.ndim == 0 and not isinstance(value, self._numpy.ndarray):  # type: ignore[union-attr]
            return self.node(value.item(), path)
        import torch

        try:
            tensor = torch.from_numpy(value.copy())
        except TypeError as error:
            raise self._refused(path, f"a numpy array of {value.dtype} cannot be stored") from error
        return {"array": self._keep(tensor, path)}

    def _keep(self, tensor: Any, path: tuple[str, ...]) -> str:
        memory = self._memory(tensor)
        if memory is not None and memory in self._names:
            return self._names[memory]
        name = base = ".".join(path) or "value"
        turn = 1
        while name in self.tensors or name == RESERVED:  # {"a.b": x, "a": {"b": y}}
            turn += 1
            name = f"{base}#{turn}"
        self.tensors[name] = tensor
        if memory is not None:
            self._names[memory] = name
        return name

    @staticmethod
    def _memory(tensor: Any) -> tuple[Any, ...] | None:
        """What makes two tensors the same memory; None where that cannot be told."""
        if tensor.numel() == 0:
            return None
        bits = (tensor.is_conj(), tensor.is_neg())
        return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), bits)


def _text(key: Any) -> str:
    return str.__str__(key) if isinstance(key, str) else str(key)


def unflatten(node: Any, fetch: Fetch) -> Any:
    """The state of a JSON tree; `fetch` gives the tensor of a name.

    Raises:
        ValueError: if the tree is not one that `flatten` makes.
    """
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if not isinstance(node, dict) or not node:
        raise ValueError(f"not a node of a state tree: {str(node)[:80]}")
    kind = next((key for key in node if key != "metadata"), None)
    build = _BUILD.get(kind) if kind else None
    if build is None:
        raise ValueError(f"unknown kind of node in a state tree: {kind!r}")
    value = build(node[kind], fetch)
    if "metadata" in node:
        value._metadata = unflatten(node["metadata"], fetch)
    return value


def _pairs(pairs: Any, fetch: Fetch) -> list[tuple[Any, Any]]:
    return [(unflatten(key, fetch), unflatten(value, fetch)) for key, value in pairs]


_BUILD: dict[str, Callable[[Any, Fetch], Any]] = {
    "dict": lambda value, fetch: dict(_pairs(value, fetch)),
    "ordered": lambda value, fetch: OrderedDict(_pairs(value, fetch)),
    "counter": lambda value, fetch: Counter(dict(_pairs(value, fetch))),
    "list": lambda value, fetch: [unflatten(item, fetch) for item in value],
    "tuple": lambda value, fetch: tuple(unflatten(item, fetch) for item in value),
    "tensor": lambda value, fetch: fetch(value),
    "array": lambda value, fetch: fetch(value).cpu().numpy(),
    "float": lambda value, _fetch: float(value),
    "bytes": lambda value, _fetch: base64.b64decode(value, validate=True),
}
