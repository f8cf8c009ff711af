#!/usr/bin/env bash
# Shows service distillation with an elastic student on this machine; `./distill.sh --help` says more.
# It runs with the checkout's .venv where there is one, else with the python3 that is active.
set -euo pipefail

folder=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
root=$(dirname "$(dirname "$folder")")
python=$root/.venv/bin/python
[[ -x $python ]] || python=$(command -v python3) || python=python3
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" "$folder/elastic_distillation.py" "$@"
