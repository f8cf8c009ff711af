"""What scripts/start_job_client.sh runs: a JobClient with the example's options filled in.

In examples/resnet50_pod it needs no option. What is given always wins, and what would make every worker fail is said
here, in one line, before a job is submitted. It adds nothing that `python -m jobclient` cannot be told.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edl_collective.coord.local_hosts import DATA_DIR_VARIABLE, data_dir, told_hosts
from jobclient.__main__ import main as run_client
from jobclient.config import count_options

HELP = """\
start_job_client.sh [options] [script [arguments of the script]]

Run it on every node, in examples/resnet50_pod. Without options it is
  python -m jobclient --package_sh ./package.sh --pod_path ./resnet50_pod --log_dir ./pod_log train.py
where each of these can be given otherwise. Before:
  export EDL_IMAGENET_PATH=/data/ImageNet EDL_CHECKPOINT_PATH=/data/checkpoints      # or PADDLE_EDL_..., see README.md
ZooKeeper is that of --zookeeper or EDL_ZOOKEEPER, else the one that start_job_server.sh started on this machine (both
look into EDL_DATA_DIR, default ~/.edl). `edl events resnet50_pod` shows what happens, the logs
of workers are ./pod_log/resnet50_pod/<worker>.log.
"""
#: how long the ZooKeeper of this machine may take to be there
WAIT_S = 30.0
DEFAULT_SCRIPT = ("train.py",)
DEFAULT_OPTIONS = {"package_sh": "./package.sh", "pod_path": "./resnet50_pod", "log_dir": "./pod_log"}
#: what the example's package hook needs on every node: variable, name of the predecessor, what it is
IMAGES = ("EDL_IMAGENET_PATH", "PADDLE_EDL_IMAGENET_PATH", "the folder that holds train/ and val/")
CHECKPOINTS = ("EDL_CHECKPOINT_PATH", "PADDLE_EDL_FLEET_CHECKPOINT_PATH", "a folder or a URL for the checkpoints")


class CannotStart(ValueError):
    """Raised when the workers of the example could not start, with a sentence for the user."""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a JobClient until a signal; returns the exit status."""
    split = count_options(argv)
    options, script = list(argv[:split]), list(argv[split:])
    given = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in options if word.startswith("-")}
    if given & {"h", "help"}:
        print(HELP)
        return run_client(["--help"], environ)
    try:
        environ = with_whole_paths(environ, Path.cwd())
        options += _missing_options(given, environ)
        if "package_sh" not in given:
            _check_example(environ, Path.cwd(), script or DEFAULT_SCRIPT)
        if "zookeeper" not in given and not environ.get("EDL_ZOOKEEPER"):
            options += ["--zookeeper", _wait_for_hosts(data_dir(environ))]
    except CannotStart as error:
        print(f"start_job_client.sh: {error}", file=sys.stderr)
        return 2
    return run_client([*options, *(script or DEFAULT_SCRIPT)], environ)


def with_whole_paths(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`environ` with the paths of the example made whole: a worker reads them in a directory of its own."""
    whole = dict(environ)
    for name in (*IMAGES[:2], *CHECKPOINTS[:2]):
        if environ.get(name) and "://" not in environ[name]:
            whole[name] = str(folder / Path(environ[name]).expanduser())
    return whole


def _wait_for_hosts(folder: Path) -> str:
    """Where this machine's start_job_server.sh has its ZooKeeper, which may be starting just now."""
    deadline = time.monotonic() + WAIT_S
    while (hosts := told_hosts(folder)) is None:
        if time.monotonic() > deadline:
            raise CannotStart(
                f"no ZooKeeper is known after {WAIT_S:g} s: start ./start_job_server.sh on this machine, or give "
                f"--zookeeper HOSTS (EDL_ZOOKEEPER); {DATA_DIR_VARIABLE} is {folder}"
            )
        time.sleep(0.1)  # a file of another process has no event to wait for
    return hosts


def _missing_options(given: set[str], environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in DEFAULT_OPTIONS.items():
        if name not in given and not environ.get(f"EDL_{name.upper()}"):
            yield from (f"--{name}", value)


def _check_example(environ: Mapping[str, str], folder: Path, script: Sequence[str]) -> None:
    """Raise CannotStart where the example's own hook or the script would fail on this node."""
    for name in ("package.sh", script[0]):
        if not (folder / name).is_file():
            text = f"there is no {name} in {folder}: change to examples/resnet50_pod, or give --package_sh, --pod_path"
            raise CannotStart(f"{text} and a script")
    for name, old_name, what in (IMAGES, CHECKPOINTS):
        if not environ.get(name) and not environ.get(old_name):
            raise CannotStart(f"{name} is not set: export {name}=... ({what}; {old_name} is accepted too)")
    images = environ.get(IMAGES[0]) or environ[IMAGES[1]]
    if not Path(images).is_dir():
        raise CannotStart(f"{IMAGES[0]} is {images}, which is not a folder on this machine")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
