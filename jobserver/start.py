"""What scripts/start_job_server.sh runs: a JobServer with a changing script and, unless one is named, a ZooKeeper.

Invariant: the ZooKeeper that it starts is its own, on this machine alone; both end with it, the JobServer first, even
if it is killed. The data of ZooKeeper stays, so that jobs go on where they stood when the script is started again.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from edl_collective.coord.local_hosts import DATA_DIR_VARIABLE, data_dir, last_port, tell_hosts, withdraw_hosts
from jobclient.options import ConfigError
from jobserver.changing import Changing
from jobserver.cli.processes import Child
from jobserver.config import OPTIONS, Config, parse
from jobserver.local_zookeeper import DEFAULT_PORT, LocalZooKeeper, LocalZooKeeperError

STOP_TIMEOUT_S = 15.0
_SHOWN = (
    *("node_ips", "pod_num_of_node", "gpu_num_of_node", "time_interval_to_change"),
    *("add_pods_one_step", "del_pods_one_step", "server_port"),
)
_DESCRIPTION = """\
start_job_server.sh [options]

Start a JobServer whose jobs shrink and grow all the time: a job that says neither how many workers it wants nor when
begins with the GPUs of all nodes, then in turn some pods leave and some join. An interval counts from the moment at
which the last change had taken effect.

  ./start_job_server.sh --time_interval_to_change 60          # then, in another terminal, on each node:
  ./start_job_client.sh

options:"""
_MORE = f"""\
  --zookeeper HOSTS
      use this ZooKeeper (also EDL_ZOOKEEPER) instead of starting a private one

Every other option of `python -m jobserver` works too, see its --help. A private ZooKeeper listens on 127.0.0.1: enough
for nodes on this machine; its data stays in ${DATA_DIR_VARIABLE} (default ~/.edl), so that jobs go on where they stood
when this script is started again. Nodes on other machines need a ZooKeeper that they can reach: give its address here
and to start_job_client.sh. Ctrl-C stops all that this script started."""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run until a signal, or until something ends by itself; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(_help())
        return 0
    options = [*argv, "--changing"]
    try:
        config = parse(options, environ)
        assert config.changing is not None, "it was asked for"
        return _run(options, config, config.changing, data_dir(environ))
    except (ConfigError, LocalZooKeeperError, OSError) as error:
        print(f"start_job_server.sh: {error}", file=sys.stderr)
        return 2


def _help() -> str:
    shown = [f"  --{name} {OPTIONS[name][0]}\n      {OPTIONS[name][1]}" for name in _SHOWN]
    return "\n".join((_DESCRIPTION, *shown, _MORE))


def _run(options: list[str], config: Config, changing: Changing, folder: Path) -> int:
    ended = threading.Event()
    asked = threading.Event()

    def end(*_signal: object) -> None:
        asked.set()
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with ExitStack() as running:
        hosts = config.zookeeper
        if not config.zookeeper_given:
            hosts = _own_zookeeper(folder, running, ended)
            options = [*options, "--zookeeper", hosts]
        _say("zookeeper", f"{hosts}{'' if config.zookeeper_given else f' (private, data in {folder})'}")
        rule = changing.rule
        what = f"every {rule.every_s:g} s in turn {rule.remove} workers leave, {rule.add} join; at most"
        _say("changing", f"{what} {changing.max_np} in all")
        _say("next", "./start_job_client.sh on each node   (Ctrl-C stops what this script started)")
        server = Child("jobserver", "jobserver", options, None, ended)
        running.callback(server.stop, STOP_TIMEOUT_S)
        ended.wait()
        code = server.exit_code
        if asked.is_set():
            return 0
    if code is None:
        raise LocalZooKeeperError(f"ZooKeeper ended by itself: see {folder}/zookeeper/zookeeper.log, and start again")
    if code != 2:  # then it said why
        _say("error", f"the JobServer ended with exit code {code}: start again, jobs go on where they stood")
    return code if code > 0 else 1


def _own_zookeeper(folder: Path, running: ExitStack, ended: threading.Event) -> str:
    """Start it where it was the last time, so that JobClients find it again; tell where it is."""
    withdraw_hosts(folder)  # a script that was killed left it
    server = LocalZooKeeper(folder / "zookeeper", last_port(folder, DEFAULT_PORT))
    hosts = server.start()
    running.callback(server.stop)
    tell_hosts(folder, hosts)
    running.callback(withdraw_hosts, folder)

    def watch() -> None:
        server.wait()
        ended.set()

    threading.Thread(target=watch, name="zookeeper-watch", daemon=True).start()
    return hosts


def _say(what: str, text: str) -> None:
    print(f"{what:<12}{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
