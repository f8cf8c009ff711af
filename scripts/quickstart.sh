#!/usr/bin/env bash
# Sets everything up, then trains ResNet-50 elastically on this machine and shows what happens to it. `--help` says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case " $* " in
  *" -h "* | *" --help "*)
    [[ -x .venv/bin/python ]] && exec .venv/bin/python scripts/quickstart.py --help
    echo "scripts/quickstart.sh [--hdfs] [--json FILE] [--epochs N] [--keep DIR]: set up, then run the main job"
    echo "(the full help comes with the set-up: scripts/setup.sh --help)"
    exit 0 ;;
esac

began=$(date +%s.%N)
scripts/setup.sh --extras hdfs,example
setup_s=$(awk -v a="$began" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
exec .venv/bin/python scripts/quickstart.py --setup_s "$setup_s" "$@"
