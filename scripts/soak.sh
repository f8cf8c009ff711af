#!/usr/bin/env bash
# Does the same thing very often: what is too long for the tests. Options of each with --help.
#   scripts/soak.sh resizes [--count 100]            what grows in any process, and what happened to the samples
#   scripts/soak.sh aborts [--aborts 300] [--seed N] aborts at random moments; a worker that crashes or hangs fails
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=python3
[[ ! -x .venv/bin/python ]] || python=.venv/bin/python
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
case ${1:-} in
  resizes) exec "$python" scripts/soak.py "$@" ;;
  aborts) exec "$python" tests/abort_soak.py "${@:2}" ;;
  -h | --help) sed -n 's/^# \{0,1\}//p' "$0" | tail -n +2 ;;
  *)
    echo "usage: scripts/soak.sh resizes|aborts [options]; --help says more" >&2
    exit 2
    ;;
esac
