#!/usr/bin/env bash
# Sets up what the tests need, then runs the linters and all tests. Arguments go to pytest:
#   scripts/test.sh                       everything but the tests that are marked long
#   scripts/test.sh -m long               those
#   scripts/test.sh tests/unit            one folder
#   scripts/test.sh -k zookeeper -x       pytest's own options
# With CI=true in the environment a skipped test is a failure (elsewhere: --no-skips).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh --extras test,hdfs,webhdfs,libhdfs,hdfs3,s3,example
scripts/lint.sh
if [[ $# -gt 0 ]]; then
  exec .venv/bin/python -m pytest "$@"
fi
# Unit tests share nothing. The others share clusters within a file: two files run at a time, in the order of conftest.py.
.venv/bin/python -m pytest tests/unit -n auto
exec .venv/bin/python -m pytest tests --ignore tests/unit -n 2 --dist loadfile --no-loadscope-reorder --durations 20
