"""Imports point one way, and modules marked [pure] reach no IO, clock, random number or environment.

The rules are checked on the syntax trees of all modules, so an import inside a function counts as well. The checker
is itself tested on small trees with a planted violation. Not seen: modules loaded by a computed name.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: From the user's view down to the ground: a module may import from its own layer and from those below it.
LAYERS = (
    "examples",
    "scripts",
    "jobserver",
    "jobclient",
    "distill",
    "edl_collective",
    "checkpoints",
    "edl_collective.coord",
)
#: Layers that import nothing of ours, though others stand below them.
SELF_CONTAINED = {"checkpoints"}

#: Pure by design, whether or not the first line of their docstring ends with [pure].
PURE_BY_DESIGN = {
    "jobserver.snapshot",
    "jobserver.allocate",
    "jobserver.reconcile",
    "jobclient.decide",
    "jobclient.worker_env",
    "edl_collective.sampler",
    "edl_collective.scaling",
    "edl_collective.driver.world",
    "edl_collective.coord.records",
    "edl_collective.coord.paths",
    "checkpoints.layout",
    "checkpoints.policy",
    "checkpoints.retention",
}
SYSTEM = "os sys io time datetime random secrets uuid tempfile shutil glob pathlib signal logging platform resource"
CONCURRENCY = "subprocess multiprocessing threading concurrent queue asyncio selectors select fcntl anyio"
NETWORK = "socket socketserver ssl http kazoo fsspec hdfs_native hdfs3 pyarrow httpx httptools requests"
HEAVY = "torch torchvision horovod fastapi starlette uvicorn psutil click rich PIL sklearn"
FORBIDDEN_TO_PURE = frozenset(" ".join([SYSTEM, CONCURRENCY, NETWORK, HEAVY]).split())
#: Parts of forbidden modules that only compute.
ALLOWED_PARTS = {"pathlib.PurePath", "pathlib.PurePosixPath"}
FORBIDDEN_CALLS = {"open", "input", "print", "breakpoint", "exec", "eval"}

#: What importing a module must not load, each checked in a process of its own.
UNLOADED = {
    "jobserver": {"torch", "horovod", "fastapi", "kazoo"},
    "jobserver.local_zookeeper": {"torch", "horovod", "fastapi", "kazoo"},
    "jobclient": {"torch", "horovod", "fastapi"},
    "edl_collective": {"torch", "horovod", "fastapi"},
    "edl_collective.coord": {"torch", "horovod", "fastapi"},
    "checkpoints": {"torch", "horovod", "fastapi", "kazoo", "jobserver", "jobclient", "edl_collective"},
    "distill": {"torch", "horovod", "fastapi", "kazoo"},
    "distill.io_process": {"torch", "horovod", "fastapi", "kazoo", "edl_collective.batches"},
    "distill.balance": {"torch", "horovod", "fastapi", "kazoo"},
    "distill.discovery": {"torch", "horovod", "fastapi"},
    "distill.teacher_client": {"torch", "horovod", "fastapi", "kazoo"},
}


@dataclass(frozen=True)
class Import:
    """One imported name: `name` is the full dotted path, an attribute included; `line` is where it stands."""

    name: str
    line: int
    #: Under `if TYPE_CHECKING:`, so it knows the other module without running it.
    typing_only: bool


@dataclass(frozen=True)
class Module:
    """One source file. `name` is dotted from the root of the tree; a package's __init__ carries the package's name."""

    name: str
    imports: tuple[Import, ...]
    calls: tuple[tuple[str, int], ...]
    marked_pure: bool


def parse(path: Path, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    first_line = (ast.get_docstring(tree) or "").partition("\n")[0]
    package = name if is_package else name.rpartition(".")[0]
    calls = tuple(
        (node.func.id, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS
    )
    return Module(name, tuple(imports_of(tree, package, False)), calls, first_line.rstrip().endswith("[pure]"))


def imports_of(node: ast.AST, package: str, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, typing_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (Import(f"{base}.{alias.name}", child.lineno, typing_only) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from imports_of(ast.Module([statement], []), package, True)
            for statement in child.orelse:
                yield from imports_of(ast.Module([statement], []), package, typing_only)
        else:
            yield from imports_of(child, package, typing_only)


def modules_of(root: Path) -> dict[str, Module]:
    tops = [root / layer for layer in LAYERS if "." not in layer]
    found = (parse(path, root) for top in tops for path in sorted(top.rglob("*.py")))
    return {module.name: module for module in found}


def is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def layer_of(name: str) -> str | None:
    """The layer of a dotted name of ours, the most specific one; None for other people's names."""
    return max((layer for layer in LAYERS if is_below(name, layer)), key=len, default=None)


def resolve(name: str, modules: dict[str, Module]) -> Module | None:
    """The module that an imported name stands for: itself, or the one that defines it."""
    return modules.get(name) or modules.get(name.rpartition(".")[0])


def upward_imports(modules: dict[str, Module]) -> list[str]:
    """One sentence for each import that does not point down."""
    found = []
    for module in modules.values():
        own = layer_of(module.name)
        assert own is not None
        for imported in module.imports:
            other = layer_of(imported.name)
            if other is None or other == own:
                continue
            if LAYERS.index(other) < LAYERS.index(own) or own in SELF_CONTAINED:
                found.append(f"{module.name}:{imported.line} imports {imported.name}: {own} stands below or alone")
    return found


def impurities(modules: dict[str, Module], pure: set[str]) -> list[str]:
    """One sentence for each way from a pure module to something forbidden, through modules of ours as well."""
    found = []
    for name in sorted(pure & set(modules)):
        chains: list[tuple[str, ...]] = [(name,)]
        seen = {name}
        while chains:
            chain = chains.pop()
            module = modules[chain[-1]]
            way = " -> ".join(chain)
            found += [f"{way}:{line} calls {call}" for call, line in module.calls if module.name in pure]
            for imported in module.imports:
                if imported.typing_only:
                    continue
                if imported.name.partition(".")[0] in FORBIDDEN_TO_PURE and imported.name not in ALLOWED_PARTS:
                    found.append(f"{way}:{imported.line} imports {imported.name}")
                other = resolve(imported.name, modules)
                if other is not None and other.name not in seen:
                    seen.add(other.name)
                    chains.append((*chain, other.name))
    return found


def pure_names(modules: dict[str, Module]) -> set[str]:
    return {module.name for module in modules.values() if module.marked_pure} | PURE_BY_DESIGN


def test_imports_only_point_down() -> None:
    modules = modules_of(ROOT)
    assert "jobserver.local_zookeeper" in modules
    assert upward_imports(modules) == []


def test_pure_modules_are_pure() -> None:
    modules = modules_of(ROOT)
    assert impurities(modules, pure_names(modules)) == []


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("module", [module for module in UNLOADED if exists(module)])
def test_import_stays_light(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert {name.partition(".")[0] for name in loaded.stdout.split()} & UNLOADED[module] == set()


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return modules_of(root)


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("jobclient/agent.py", "from jobserver import api"),
        ("jobclient/agent.py", "import jobserver.api"),
        ("jobclient/agent.py", "def late():\n    import jobserver"),
        ("edl_collective/coord/store.py", "from edl_collective.run import run"),
        ("edl_collective/coord/store.py", "from ..run import run"),
        ("edl_collective/coord/__init__.py", "from .. import run"),
        ("edl_collective/run.py", "import distill.reader"),
        ("checkpoints/saver.py", "from edl_collective.coord import clock"),
        ("checkpoints/saver.py", "from jobclient import agent"),
        ("jobserver/api.py", "import examples.resnet50_pod.train"),
        ("jobserver/api.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import scripts.bench"),
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, path: str, statement: str) -> None:
    [sentence] = upward_imports(plant(tmp_path, {path: statement}))
    assert sentence.startswith(path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") + ":")


def test_downward_imports_are_allowed(tmp_path: Path) -> None:
    files = {
        "examples/a/train.py": "import edl_collective, checkpoints, numpy",
        "jobserver/api.py": "from jobclient import agent\nfrom edl_collective.coord import records",
        "edl_collective/run.py": "from .coord import store\nfrom checkpoints import saver\nfrom . import gate",
        "checkpoints/saver.py": "from .drivers import local\nimport checkpoints.layout",
    }
    assert upward_imports(plant(tmp_path, files)) == []


@pytest.mark.parametrize(
    "body",
    [
        "import time",
        "from os import environ",
        "import os.path",
        "from pathlib import Path",
        "def f():\n    from kazoo.client import KazooClient",
        "if True:\n    import torch",
        "text = open('x').read()",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import socket",
    ],
)
def test_a_planted_impurity_is_found(tmp_path: Path, body: str) -> None:
    modules = plant(tmp_path, {"jobserver/plan.py": f'"""Plan arithmetic. [pure]\n\nMore.\n"""\n{body}\n'})
    assert len(impurities(modules, pure_names(modules))) == 1


def test_an_impurity_behind_another_module_is_found_with_its_way(tmp_path: Path) -> None:
    files = {
        "jobserver/reconcile.py": "from jobserver.helper import now",
        "jobserver/helper.py": "import time",
    }
    modules = plant(tmp_path, files)
    assert impurities(modules, pure_names(modules)) == ["jobserver.reconcile -> jobserver.helper:1 imports time"]


def test_pure_code_may_compute_and_name_types(tmp_path: Path) -> None:
    body = "import json, zlib, dataclasses, numpy, msgspec\nfrom pathlib import PurePosixPath\n"
    body += "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .config import Config\n"
    files = {"jobserver/plan.py": f'"""Plan. [pure]"""\n{body}', "jobserver/config.py": "import os\nopen('x')"}
    modules = plant(tmp_path, files)
    assert modules["jobserver.plan"].marked_pure
    assert not modules["jobserver.config"].marked_pure
    assert impurities(modules, pure_names(modules)) == []
