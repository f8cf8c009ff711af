#!/usr/bin/env bash
# Sets this checkout up: system packages, .venv, torch, the Horovod wheel, the project itself. `--help` says more.
# Invariants: running it again changes nothing and is quick; two runs at once are safe; a failed step leaves nothing
# that a later run would take for finished.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
STAMP=$VENV/edl-setup.stamp
LOG=$VENV/setup.log
CACHE=$(realpath -m "${EDL_CACHE_DIR:-${HOME:?set HOME or EDL_CACHE_DIR}/.cache/edl}")
TORCH_VERSION=${EDL_TORCH_VERSION:-2.13.0}
HOROVOD_VERSION=0.28.1
HOROVOD_SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
HEARTBEAT_S=10
EXTRAS=hdfs,example
QUIET=

usage() {
  cat <<'HELP'
scripts/setup.sh [--extras NAMES] [--quiet]

Sets up everything that EDL needs in this checkout, and nothing outside it but Debian packages and a cache:
  1. Debian packages, only those that are missing (as root; otherwise the command to run is printed); with the extra
     test also Chromium, in which the page is tested (121 MB to fetch, 440 MB installed)
  2. .venv, with Python 3.11 or newer
  3. torch, then Horovod 0.28.1, compiled once against that torch (2 minutes on two cores) and cached as a wheel
  4. this project, editable, with its extras
Run it as often as you like: what is there already is left alone.

  --extras NAMES   extras of setup.py, comma-separated (default: hdfs,example). Extras installed before are kept.
  --quiet          print errors and the last line only
  --help           this text

Environment
  EDL_PYTHON          the Python that makes .venv (default: python3.11, then newer ones, then python3)
  EDL_TORCH_VERSION   the torch to install (default: 2.13.0). pip's own settings (PIP_*, pip.conf) decide where from.
  EDL_CACHE_DIR       where the Horovod sources and wheels are kept (default: ~/.cache/edl)
  EDL_HOROVOD_SDIST   a local horovod-0.28.1.tar.gz, for machines without a package index; its hash is checked
  EDL_WITH_MPI        1: build Horovod with MPI, for `horovodrun --mpi` (needs libopenmpi-dev); later runs keep it
                      until one has EDL_WITH_MPI=0
  EDL_WITH_NCCL       1: demand NCCL, 0: leave it out (default: used when nvcc, nccl.h and a CUDA torch are there)
  EDL_BUILD_JOBS      compilers at a time (default: by cores and memory)
  EDL_ZOOKEEPER_JAR   a ZooKeeper server jar to use instead of Debian's

Afterwards: source .venv/bin/activate
HELP
}

say() { [[ -n $QUIET ]] || printf '%s\n' "$*"; }
# die CODE SENTENCE...
die() { local code=$1; shift; printf 'setup.sh: error: %s\n' "$*" >&2; exit "$code"; }

parse_arguments() {
  while (($#)); do
    case $1 in
      --extras) (($# > 1)) || die 2 "--extras needs a value such as hdfs,example"; EXTRAS=$2; shift 2 ;;
      --extras=*) EXTRAS=${1#*=}; shift ;;
      --quiet) QUIET=1; shift ;;
      -h | --help) usage; exit 0 ;;
      *) die 2 "unknown option $1; scripts/setup.sh --help lists them" ;;
    esac
  done
  [[ $EXTRAS =~ ^[a-z0-9]*(,[a-z0-9]+)*$ ]] || die 2 "--extras takes names separated by commas, not '$EXTRAS'"
}

# ---- long steps: a log, a heartbeat, and no process left behind --------------------------------------------------

STEP_PID=
SCRATCH=
clean_up() {
  [[ -z $STEP_PID ]] || kill -TERM -- "-$STEP_PID" 2>/dev/null || true
  [[ -z $SCRATCH ]] || rm -rf "$SCRATCH"
}

# The last thing that pip or make said it does, from byte $1 of the log on.
current_step() {
  local said='\[ *[0-9]+%\] (Building|Linking) .*|(Collecting|Downloading) [^ ]+|Installing collected packages'
  said+='|^(Get:|Unpacking|Setting up).*|Running cmake'
  { tail -c "+$1" "$LOG" | tail -c 400000 | grep -oE "$said" || echo working; } |
    tail -n 1 | sed -E 's#(Building|Linking) .*/#\1 #' | cut -c 1-70
}

# step "what" command...: run it with its output in the log; a line every HEARTBEAT_S; its last lines on failure.
step() {
  local what=$1 begin=$SECONDS next=$HEARTBEAT_S offset rc=0; shift
  say "- $what"
  offset=$(($(stat -c %s "$LOG") + 1))
  printf '== %s: %s\n' "$what" "$*" >>"$LOG"
  setsid "$@" >>"$LOG" 2>&1 </dev/null 8<&- 9<&- &
  STEP_PID=$!
  while kill -0 "$STEP_PID" 2>/dev/null; do
    sleep 0.5
    if ((SECONDS - begin >= next)); then
      say "    $((SECONDS - begin)) s  $(current_step "$offset")"
      next=$((next + HEARTBEAT_S))
    fi
  done
  wait "$STEP_PID" || rc=$?
  STEP_PID=
  ((rc == 0)) && return
  # The compiler's own words first: pip's report of a failed build is longer than the screen.
  tail -c "+$offset" "$LOG" | grep -E -A 3 'CMake Error|fatal error:|: error:|: \*\*\*' | head -n 15 | sed 's/^/    ! /' >&2 || true
  tail -c "+$offset" "$LOG" | tail -n 15 | sed 's/^/    | /' >&2
  die 1 "'$what' failed with exit code $rc after $((SECONDS - begin)) s; the whole log: $LOG"
}

# ---- 1. the machine ----------------------------------------------------------------------------------------------

find_python() {
  local candidate path
  for candidate in ${EDL_PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
    path=$("$candidate" -c 'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null) || continue
    [[ -z $path ]] || { printf '%s' "$path"; return; }
  done
  die 2 "no Python 3.11 or newer found${EDL_PYTHON:+ at EDL_PYTHON=$EDL_PYTHON}; on Debian 12:" \
    "apt-get install python3 python3-venv python3-dev, or name one with EDL_PYTHON"
}

missing_debian_packages() {
  local python=$1 prefix
  # Debian's own interpreters come in parts; others (built from source, pyenv, conda) are complete.
  prefix=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "$prefix-venv"
  [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] || echo "$prefix-dev"
  command -v "${CXX:-g++}" >/dev/null || echo g++
  command -v make >/dev/null || echo make
  [[ -x ${JAVA_HOME:-/nonexistent}/bin/java ]] || command -v java >/dev/null || echo default-jre-headless
  [[ -f ${EDL_ZOOKEEPER_JAR:-/usr/share/java/zookeeper.jar} ]] || echo libzookeeper-java
  # The tests show the page in a real browser: 121 MB to fetch, 440 MB installed.
  [[ ,$(all_extras), != *,test,* ]] || command -v chromium >/dev/null || echo chromium
  [[ $EDL_WITH_MPI != 1 ]] || { command -v mpicxx && command -v mpirun; } >/dev/null ||
    printf '%s\n' libopenmpi-dev openmpi-bin
}

install_debian_packages() {
  local -a missing
  mapfile -t missing < <(missing_debian_packages "$1")
  ((${#missing[@]})) || return 0
  local command="apt-get install --yes --no-install-recommends ${missing[*]}"
  command -v apt-get >/dev/null ||
    die 2 "missing here: ${missing[*]} (these are Debian's names); install them with this system's package manager"
  ((EUID == 0)) || die 2 "Debian packages are missing and only root may install them; run: sudo $command"
  step "Debian packages: ${missing[*]}" \
    env DEBIAN_FRONTEND=noninteractive sh -c "$command || { apt-get update && $command; }"
  mapfile -t missing < <(missing_debian_packages "$1")
  ((${#missing[@]} == 0)) || die 1 "still missing after apt-get install: ${missing[*]}; the log: $LOG"
}

# ---- 2. .venv and torch ------------------------------------------------------------------------------------------

pip_step() { local what=$1; shift; step "$what" "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

make_venv() {
  "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  rm -rf "$VENV/bin" "$VENV/lib" "$VENV/lib64" "$VENV/include" "$STAMP"
  step ".venv with $("$1" --version 2>&1)" "$1" -m venv "$VENV"
  pip_step "pip and setuptools" install --upgrade pip 'setuptools>=77.0.3,<81' wheel
}

# Prints what the wheel depends on and what is installed, one NAME=value per line; imports neither torch nor Horovod.
facts() {
  "$VENV/bin/python" - <<'PY'
import importlib.metadata as metadata
import importlib.util
import platform
import runpy
import sys
from pathlib import Path


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


spec = importlib.util.find_spec("torch")
cuda = runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"] if spec else None
print(f"FACT_ABI={sys.implementation.cache_tag.replace('cpython-', 'cp')}{sys.abiflags}")
print(f"FACT_MACHINE={platform.machine()}")
print(f"FACT_TORCH={version('torch')}")
print(f"FACT_TORCH_CUDA={cuda or ''}")
print(f"FACT_HOROVOD={version('horovod')}")
print(f"FACT_PROJECT={version('edl-elastic')}")
PY
}

read_facts() {
  local text
  text=$(facts)
  eval "$text"
}

install_torch() {
  if [[ $FACT_TORCH != "$TORCH_VERSION" && ${FACT_TORCH%%+*} != "$TORCH_VERSION" ]]; then
    pip_step "torch $TORCH_VERSION" install "torch==$TORCH_VERSION" 'numpy>=2.0'
    read_facts
  fi
}

# ---- 3. Horovod --------------------------------------------------------------------------------------------------

# Sets NCCL_INCLUDE, NCCL_LIBRARY, CUDA_HOME_FOUND when Horovod can be built with NCCL; says why when it cannot.
find_nccl() {
  NCCL_INCLUDE= NCCL_LIBRARY= CUDA_HOME_FOUND= CUDA_VERSION=
  [[ ${EDL_WITH_NCCL:-auto} != 0 ]] || return 0
  local why='' nvcc site directory
  nvcc=$(command -v nvcc || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" || true)
  if [[ -z $nvcc ]]; then
    why="no nvcc on PATH or in CUDA_HOME"
  elif [[ -z $FACT_TORCH_CUDA ]]; then
    why="torch $FACT_TORCH is built without CUDA"
  else
    CUDA_VERSION=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    [[ ${CUDA_VERSION%%.*} == "${FACT_TORCH_CUDA%%.*}" ]] ||
      why="nvcc is of CUDA $CUDA_VERSION, but torch of CUDA $FACT_TORCH_CUDA"
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for directory in "${HOROVOD_NCCL_HOME:-}" "$(dirname "$(dirname "$(readlink -f "$nvcc")")")" /usr "$site/nvidia/nccl"; do
      [[ -n $directory && -f $directory/include/nccl.h ]] || continue
      NCCL_INCLUDE=$directory/include
      NCCL_LIBRARY=$(find "$directory/lib" "$directory/lib64" -name 'libnccl.so*' 2>/dev/null | sort | head -n 1 || true)
      [[ -z $NCCL_LIBRARY ]] || break
    done
    [[ -n $why || -n $NCCL_LIBRARY ]] || why="no nccl.h with its libnccl.so found (HOROVOD_NCCL_HOME names its place)"
    CUDA_HOME_FOUND=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
  fi
  [[ -n $why ]] || return 0
  [[ ${EDL_WITH_NCCL:-auto} != 1 ]] || die 2 "EDL_WITH_NCCL=1, but $why"
  NCCL_LIBRARY=
  [[ -z $nvcc ]] || say "- Horovod without NCCL: $why"
}

# One line per thing that a Horovod binary depends on; its hash and a readable part name the cached wheel.
wheel_inputs() {
  local flags
  flags=$(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null | grep -oE '\b(f16c|avx|fma)\b' | sort -u | tr '\n' ' ' || true)
  cat <<INPUTS
horovod $HOROVOD_VERSION $HOROVOD_SHA256
torch $FACT_TORCH cuda $FACT_TORCH_CUDA
python $FACT_ABI $FACT_MACHINE cpu $flags
compiler ${CXX:-g++} $("${CXX:-g++}" -dumpfullversion -dumpversion)
mpi $([[ $EDL_WITH_MPI == 1 ]] && mpicxx --version 2>&1 | head -n 1 && mpirun --version 2>&1 | head -n 1 || echo no)
nccl ${NCCL_LIBRARY:-no} $([[ -n $NCCL_LIBRARY ]] && sha256sum <"$NCCL_INCLUDE/nccl.h") ${NCCL_LIBRARY:+cuda $CUDA_VERSION}
architectures ${NCCL_LIBRARY:+${HOROVOD_BUILD_CUDA_CC_LIST:-all}}
recipe $(cat "$ROOT"/scripts/horovod/*.cmake | sha256sum)
INPUTS
}

name_wheel() {
  local with=cpu
  [[ $EDL_WITH_MPI != 1 ]] || with+=-mpi
  [[ -z $NCCL_LIBRARY ]] || with=${with/cpu/nccl}
  printf 'horovod-%s-torch-%s-%s-%s-%s' "$HOROVOD_VERSION" "$FACT_TORCH" "$FACT_ABI" "$with" \
    "$(wheel_inputs | sha256sum | cut -c 1-16)"
}

build_jobs() {
  [[ -z ${EDL_BUILD_JOBS:-} ]] || { printf '%s' "$EDL_BUILD_JOBS"; return; }
  local cores memory_mb limit
  cores=$(nproc)
  memory_mb=$(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [[ $limit != max ]] && ((limit / 1048576 < memory_mb)); then memory_mb=$((limit / 1048576)); fi
  local by_memory=$((memory_mb / 1500)) # a compiler takes up to 1.5 GB
  printf '%s' $((by_memory < 1 ? 1 : by_memory < cores ? by_memory : cores))
}

sha256_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

# Sets SDIST to the verified source archive: EDL_HOROVOD_SDIST, the cached one, or a fresh download.
fetch_sdist() {
  SDIST=$CACHE/sdists/horovod-$HOROVOD_VERSION.tar.gz
  if [[ -n ${EDL_HOROVOD_SDIST:-} ]]; then
    [[ -f $EDL_HOROVOD_SDIST ]] || die 2 "EDL_HOROVOD_SDIST=$EDL_HOROVOD_SDIST is not a file"
    SDIST=$EDL_HOROVOD_SDIST
  elif [[ ! -f $SDIST || $(sha256_of "$SDIST") != "$HOROVOD_SHA256" ]]; then
    # --require-hashes: pip compares the hash before it runs anything out of the archive.
    printf 'horovod==%s --hash=sha256:%s\n' "$HOROVOD_VERSION" "$HOROVOD_SHA256" >"$SCRATCH/requirements.txt"
    pip_step "sources of Horovod $HOROVOD_VERSION" download --no-deps --no-binary :all: --no-build-isolation \
      --require-hashes --dest "$SCRATCH" --requirement "$SCRATCH/requirements.txt"
    mkdir -p "$CACHE/sdists"
    mv "$SCRATCH/horovod-$HOROVOD_VERSION.tar.gz" "$SDIST"
  fi
  local actual
  actual=$(sha256_of "$SDIST")
  [[ $actual == "$HOROVOD_SHA256" ]] ||
    die 1 "$SDIST is not the Horovod $HOROVOD_VERSION that was reviewed: sha256 $actual, expected $HOROVOD_SHA256"
}

# build_wheel DIRECTORY: leave the wheel in it, complete or not at all.
build_wheel() {
  local jobs
  local -a settings
  SCRATCH=$(mktemp -d "$CACHE/build.XXXXXX")
  pip_step "tools that build Horovod" install cloudpickle psutil pyyaml cffi packaging 'cmake>=3.21,<4'
  fetch_sdist
  jobs=$(build_jobs)
  settings=(
    TMPDIR="$SCRATCH" MAKEFLAGS="-j$jobs" CMAKE_GENERATOR="Unix Makefiles"
    CMAKE_TOOLCHAIN_FILE="$ROOT/scripts/horovod/toolchain.cmake" HOROVOD_CMAKE="$VENV/bin/cmake"
    HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
  )
  if [[ $EDL_WITH_MPI == 1 ]]; then settings+=(HOROVOD_WITH_MPI=1); else settings+=(HOROVOD_WITHOUT_MPI=1); fi
  if [[ -n $NCCL_LIBRARY ]]; then
    mkdir "$SCRATCH/nccl"
    ln -s "$NCCL_LIBRARY" "$SCRATCH/nccl/libnccl.so" # the linker wants this name; pip's NCCL has only libnccl.so.2
    settings+=(HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_CUDA_HOME="$CUDA_HOME_FOUND" HOROVOD_NCCL_LINK=SHARED
      HOROVOD_NCCL_INCLUDE="$NCCL_INCLUDE" HOROVOD_NCCL_LIB="$SCRATCH/nccl")
  fi
  step "compile Horovod $HOROVOD_VERSION for torch $FACT_TORCH, $jobs at a time (about 4 minutes of one core)" \
    env "${settings[@]}" "$VENV/bin/python" -m pip --disable-pip-version-check --no-input wheel --verbose \
    --no-deps --no-build-isolation --no-cache-dir --wheel-dir "$SCRATCH/wheel" "$SDIST"
  wheel_inputs >"$SCRATCH/wheel/inputs.txt"
  rm -rf "$1"
  mv -T "$SCRATCH/wheel" "$1"
  rm -rf "$SCRATCH"
  SCRATCH=
}

install_horovod() {
  local directory=$CACHE/wheels/$WHEEL_NAME
  mkdir -p "$CACHE/wheels" "$CACHE/locks"
  exec 9>"$CACHE/locks/$WHEEL_NAME"
  flock --nonblock 9 || { say "- waiting for another set-up that builds the same wheel"; flock 9; }
  if compgen -G "$directory/horovod-*.whl" >/dev/null; then
    say "- Horovod wheel from the cache: $directory"
  else
    build_wheel "$directory"
  fi
  # pip takes an equal version for the same thing, but this may be the build for another torch.
  [[ -z $FACT_HOROVOD ]] || pip_step "the Horovod of another build leaves" uninstall --yes horovod
  pip_step "Horovod into .venv" install "$directory"/horovod-*.whl
  exec 9>&-
}

# ---- 4. the project ----------------------------------------------------------------------------------------------

# The stamp has two lines: the name of the Horovod wheel; hash and extras of the installed project.
read_stamp() {
  STAMP_WHEEL= STAMP_PROJECT= STAMP_EXTRAS=
  [[ ! -f $STAMP ]] || { read -r STAMP_WHEEL; read -r STAMP_PROJECT STAMP_EXTRAS; } <"$STAMP" || true
}

write_stamp() {
  printf '%s\n%s %s\n' "$STAMP_WHEEL" "$STAMP_PROJECT" "$STAMP_EXTRAS" >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
}

project_hash() { (cd "$ROOT" && cat setup.py pyproject.toml jobserver/__init__.py | sha256sum | cut -c 1-16); }

# Extras wanted now together with those installed before, sorted, so that no run takes away what another needs.
all_extras() { printf '%s' "$STAMP_EXTRAS,$EXTRAS" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -s -d , -; }

install_project() {
  local extras hash
  extras=$(all_extras)
  hash=$(project_hash)
  if [[ $FACT_PROJECT && $STAMP_PROJECT == "$hash" && $STAMP_EXTRAS == "$extras" ]]; then
    say "- the project is installed as it is here (${extras:-no extras})"
    return
  fi
  pip_step "the project, editable, with ${extras:-no extras}" install --no-build-isolation \
    --editable "$ROOT${extras:+[$extras]}" "torch==$FACT_TORCH"
  STAMP_PROJECT=$hash STAMP_EXTRAS=$extras && write_stamp
}

main() {
  local python
  parse_arguments "$@"
  trap clean_up EXIT
  trap 'exit 130' INT; trap 'exit 143' TERM
  # A lock without a file of its own: two runs in one checkout follow each other.
  exec 8<"$ROOT/scripts/setup.sh"
  flock --nonblock 8 || { say "- waiting for another set-up of this checkout"; flock 8; }
  mkdir -p "$VENV" "$CACHE"
  : >"$LOG"
  python=$(find_python)
  read_stamp
  # Whoever asked for MPI once keeps it, also when another script calls this one.
  : "${EDL_WITH_MPI:=$([[ $STAMP_WHEEL == *-mpi-* ]] && echo 1 || echo 0)}"
  install_debian_packages "$python"
  make_venv "$python"
  read_facts
  install_torch
  find_nccl
  WHEEL_NAME=$(name_wheel)
  read_stamp
  if [[ $FACT_HOROVOD == "$HOROVOD_VERSION" && $STAMP_WHEEL == "$WHEEL_NAME" ]]; then
    say "- Horovod $HOROVOD_VERSION is built for this torch and installed"
  else
    STAMP_WHEEL='' && write_stamp # killed from here on, the next run does not trust what it finds
    install_horovod
    STAMP_WHEEL=$WHEEL_NAME && write_stamp
  fi
  install_project
  printf 'Ready in %d s. To use it: source %q\n' "$SECONDS" "$VENV/bin/activate"
}

main "$@"
