#!/usr/bin/env bash
# Runs what is too long for the tests. scripts/soak.sh aborts [--aborts 300] [--workers 3] [--seed N]: random aborts
# against real Horovod processes; prints one JSON line, and fails when a worker crashes or no world comes any more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python3
[[ ! -x .venv/bin/python ]] || python=.venv/bin/python
case ${1:-} in
  aborts) PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "$python" tests/abort_soak.py "${@:2}" ;;
  *)
    echo "usage: scripts/soak.sh aborts [--aborts N] [--workers N] [--seed N]" >&2
    exit 2
    ;;
esac
