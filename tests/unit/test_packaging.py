"""setup.py against the tree: every package is installed, nothing else is, and no ignore pattern hides one."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jobserver

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = {"tests", "examples", "scripts", "docs", "build", "dist"}


def setup_constant(name: str) -> Any:
    """The value of a module-level literal of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


def directories_of_packages() -> Iterator[Path]:
    """All directories of the tree that hold an __init__.py, relative to it, except where nothing is installed from."""
    for top in ROOT.iterdir():
        if top.is_dir() and not top.name.startswith(".") and top.name not in NOT_INSTALLED:
            yield from (init.parent.relative_to(ROOT) for init in top.rglob("__init__.py"))


PACKAGES: list[str] = setup_constant("PACKAGES")


def test_every_package_of_the_tree_is_installed() -> None:
    found = {".".join(path.parts) for path in directories_of_packages()}
    assert "jobserver" in found
    assert found - set(PACKAGES) == set()


def test_every_listed_directory_is_a_package() -> None:
    listed = [ROOT.joinpath(*package.split(".")) for package in PACKAGES]
    assert [path for path in listed if path.exists() and not (path / "__init__.py").is_file()] == []


def test_tests_examples_and_scripts_are_never_installed() -> None:
    assert {package.split(".")[0] for package in PACKAGES} & NOT_INSTALLED == set()


def test_parents_are_listed_and_nothing_twice() -> None:
    assert len(set(PACKAGES)) == len(PACKAGES)
    assert {package.rpartition(".")[0] for package in PACKAGES} - {""} <= set(PACKAGES)


def test_every_file_of_a_package_is_installed() -> None:
    patterns: list[str] = setup_constant("DATA_PATTERNS")
    files = [path for folder in directories_of_packages() for path in (ROOT / folder).iterdir() if path.is_file()]
    assert ROOT / "jobserver" / "py.typed" in files
    left_out = [path for path in files if path.suffix != ".py" and not any(fnmatch(path.name, p) for p in patterns)]
    assert left_out == []


def test_types_of_top_level_packages_are_announced() -> None:
    tops = {folder.parts[0] for folder in directories_of_packages()}
    assert sorted(top for top in tops if not (ROOT / top / "py.typed").is_file()) == [], "add an empty py.typed"


def test_metadata_of_the_distribution() -> None:
    command = [sys.executable, "setup.py", "--quiet", "--name", "--version"]
    name, version = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert (name, version) == ("edl-elastic", jobserver.__version__)


def test_heavy_packages_are_extras() -> None:
    base = {re.split(r"[<>=!]", requirement)[0] for requirement in setup_constant("INSTALL_REQUIRES")}
    assert base & {"torch", "horovod", "hdfs-native", "hdfs3", "pyarrow", "requests", "pillow", "scikit-learn"} == set()


def test_no_ignore_pattern_hides_a_source_file(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    sources = [f"{package.replace('.', '/')}/module.py" for package in PACKAGES] + ["docs/decisions/001-x.md"]
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"], cwd=tmp_path, input="\n".join(sources), capture_output=True, text=True
    )
    assert (ignored.returncode, ignored.stdout) == (1, "")  # 1: none of them is ignored
