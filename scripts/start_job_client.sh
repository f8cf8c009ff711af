#!/usr/bin/env bash
# Starts a JobClient in the foreground; --help explains it. Ctrl-C, or SIGTERM, stops all that it started.
# It runs with the checkout's .venv where there is one, else with the python3 that is active.
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
python=$root/.venv/bin/python
[[ -x $python ]] || python=$(command -v python3) || python=python3
"$python" -c 'import jobclient' 2>/dev/null || {
  echo "start_job_client.sh: $python cannot import jobclient: run $root/scripts/setup.sh, or activate the environment that has EDL" >&2
  exit 2
}
exec "$python" -m jobclient.start "$@"
