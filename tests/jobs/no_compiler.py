"""Keeps torch's compiler out of a small job: `import no_compiler` before the first step.

Every optimizer imports it then, for a decorator that does nothing where nothing is compiled, and that takes longer than
all that such a job does otherwise until it trains. The jobs of the examples and of `edl drill` have it.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch


class _NoCompiler(ModuleType):
    """What optimizers ask of torch._dynamo."""

    @staticmethod
    def disable(fn: Callable[..., Any], recursive: bool = True, **_: Any) -> Callable[..., Any]:
        return fn

    @staticmethod
    def graph_break(msg: str = "") -> None: ...


if "torch._dynamo" not in sys.modules:
    sys.modules["torch._dynamo"] = vars(torch)["_dynamo"] = _NoCompiler("torch._dynamo")
