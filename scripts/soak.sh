#!/usr/bin/env bash
# Does the same thing very often and looks for what leaks: scripts/soak.sh resizes. See scripts/soak.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python3
[[ ! -x .venv/bin/python ]] || python=.venv/bin/python
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "$python" scripts/soak.py "$@"
