#!/usr/bin/env bash
# What a teacher can do: requests, latencies and CPU over batch sizes and numbers of connections. See scripts/qps.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python3
[[ ! -x .venv/bin/python ]] || python=.venv/bin/python
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "$python" scripts/qps.py "$@"
