#!/usr/bin/env bash
# Builds or serves the documentation. `--help` says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'HELP'
scripts/docs.sh build [--site-dir DIR] | serve [--dev-addr HOST:PORT]

  build   the site into build/site, which opens without a server: build/site/index.html. Every warning (a link or an
          anchor that leads nowhere, a page that is not in the navigation) is an error.
  serve   the same at http://127.0.0.1:8000, built anew when a page or the code that it is made from changes
  --help  this text

Other options go to mkdocs. Needs the extra docs: scripts/setup.sh --extras docs. The site loads nothing from elsewhere.
HELP
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  build | serve) ;;
  *) usage >&2; exit 2 ;;
esac
case " $* " in *" --help "*) usage; exit 0 ;; esac

[[ ! -x .venv/bin/mkdocs ]] || PATH=$PWD/.venv/bin:$PATH
command -v mkdocs >/dev/null || { echo "docs.sh: error: no mkdocs; run scripts/setup.sh --extras docs" >&2; exit 2; }
export PYTHONPATH=$PWD:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH} NO_MKDOCS_2_WARNING=1

if [[ $1 == build ]]; then
  exec mkdocs build --strict "${@:2}"
fi
exec mkdocs serve --livereload "${@:2}"
