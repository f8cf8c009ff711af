"""Reads the Python of the documentation as Python would, without running it: syntax, imports, names, calls."""

import ast
import builtins
import importlib
import inspect
from types import ModuleType
from typing import Any

from doc_blocks import ROOT

_NAMES = ROOT / "tests" / "jobs" / "doc_names.py"
_OURS = ("edl_collective", "checkpoints", "distill", "jobserver", "jobclient")


class Wrong(ValueError):
    """Raised when a block of Python could not work."""


def check_python(text: str) -> None:
    """Raises Wrong, or SyntaxError."""
    tree = ast.parse(text)
    known = _imported(tree)
    bound = {*known, *given(), *dir(builtins), *_bound(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in bound:
            raise Wrong(f"{node.id} is bound nowhere; if it is the reader's own, add it to {_NAMES.name}")
        if isinstance(node, ast.Attribute):
            _value(node, known)
        if isinstance(node, ast.Call):
            _check_call(node, known)


def given() -> set[str]:
    """What stands for the reader's own objects."""
    tree = ast.parse(_NAMES.read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    return _bound(tree) | {alias.asname or alias.name for node in imports for alias in node.names}


def _imported(tree: ast.AST) -> dict[str, Any]:
    """Name -> what it is, of all imports."""
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                known[alias.asname or alias.name.partition(".")[0]] = (
                    module if alias.asname else importlib.import_module(alias.name.partition(".")[0])
                )
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "pages have no relative imports"
            for alias in node.names:
                known[alias.asname or alias.name] = _member(importlib.import_module(node.module), alias.name)
    return known


def _member(module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        try:
            return importlib.import_module(f"{module.__name__}.{name}")
        except ImportError:
            raise Wrong(f"{module.__name__} has no {name}") from None
    return getattr(module, name)


def _bound(tree: ast.AST) -> set[str]:
    """Names that are assigned, or are functions, classes or arguments, anywhere in the block."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """What a dotted name is, None where only running would tell. Raises Wrong for what a module or class has not."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = _value(node.value, known)
    if not isinstance(owner, ModuleType | type):
        return None
    if not hasattr(owner, node.attr):
        raise Wrong(f"{getattr(owner, '__name__', owner)} has no {node.attr}")
    return getattr(owner, node.attr)


def _check_call(node: ast.Call, known: dict[str, Any]) -> None:
    """Calls of what is ours must fit its signature."""
    function = _value(node.func, known)
    if not callable(function) or not str(getattr(function, "__module__", "")).startswith(_OURS):
        return
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
        return
    try:
        arguments = {str(keyword.arg): None for keyword in node.keywords}
        inspect.signature(function).bind_partial(*node.args, **arguments)
    except TypeError as error:
        raise Wrong(f"{ast.unparse(node.func)}: {error}") from error
