#!/usr/bin/env bash
# Measures this machine's figures: pauses after kills, control latency, footprint, accuracy. See scripts/measure.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python3
[[ ! -x .venv/bin/python ]] || python=.venv/bin/python
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "$python" scripts/measure.py "$@"
