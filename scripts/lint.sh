#!/usr/bin/env bash
# Checks style (ruff), formatting (ruff format) and types (mypy strict). `scripts/lint.sh --fix` mends what it can.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The tools of .venv, or those of the environment that is active (a shared one, an image).
[[ ! -x .venv/bin/ruff ]] || PATH=$PWD/.venv/bin:$PATH
for tool in ruff mypy; do
  command -v "$tool" >/dev/null || { echo "lint.sh: error: no $tool; run scripts/setup.sh --extras test" >&2; exit 2; }
done

if [[ ${1:-} == --fix ]]; then
  ruff check --fix .
  ruff format .
else
  ruff check .
  ruff format --check .
fi

mypy # the packages, as pyproject.toml lists them
shopt -s nullglob globstar
python_files=(setup.py scripts/**/*.py tests/**/*.py)
examples=(examples/*/)
MYPYPATH=$(IFS=:; echo "scripts:tests${examples[*]:+:${examples[*]}}") mypy "${python_files[@]}"
# Each example is a program of its own: a directory of modules that import one another by their bare names.
for directory in "${examples[@]}"; do
  modules=("$directory"*.py)
  ((${#modules[@]} == 0)) || MYPYPATH=$directory mypy "${modules[@]}"
done
