#!/usr/bin/env bash
# Compares this project with its peers on this machine: scripts/bench.sh resize | distill | checkpoint | control. Each has --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python3
[[ ! -x .venv/bin/python ]] || python=.venv/bin/python
PYTHONPATH=$PWD:$PWD/scripts:$PWD/tests${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m bench "$@"
