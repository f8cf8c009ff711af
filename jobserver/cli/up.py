"""edl up: ZooKeeper, a JobServer and nodes on this machine, in the foreground; Ctrl-C stops all of it in order.

It owns what it starts and nothing else: with --zookeeper it uses a server of somebody else's and leaves it running.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from edl_collective.coord.errors import CoordError
from edl_collective.coord.key_file import load_or_create_key
from jobserver.cli.client import DEFAULT_SERVER, Api, BadInput, CommandFailed, key_path
from jobserver.cli.processes import Child
from jobserver.local_zookeeper import DEFAULT_PORT, LocalZooKeeper, LocalZooKeeperError

READY_TIMEOUT_S = 60.0
READY_INTERVAL_S = 0.1
#: a node stops its workers first: at most the sum of a job's leave and stop time-outs
NODE_STOP_TIMEOUT_S = 60.0
SERVER_STOP_TIMEOUT_S = 15.0
_LAST_PORT = 65535


@click.command()
@click.option("--nodes", type=click.IntRange(1, 64), default=1, show_default=True, help="JobClients to start")
@click.option("--slots", default="auto", show_default=True, help="slots of each node, or auto")
@click.option("--zookeeper", envvar="EDL_ZOOKEEPER", default=None, help="use this one instead of starting one")
@click.option(
    "--zookeeper-port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="preferred port of the started one; 0 takes any that is free, so that no other program finds it by default",
)
@click.option("--server-port", type=int, default=8180, show_default=True, help="port of the JobServer")
@click.option(
    "--tls",
    envvar="EDL_TLS",
    type=click.Choice(["on", "off"]),
    default="off",
    show_default=True,
    help="TLS on HTTP, by the cluster key; all of it is on the loopback, so this is for a machine that you share",
)
@click.option("--data-dir", type=click.Path(path_type=Path), default=None, help="data and logs (default: ~/.edl)")
@click.option("--log-dir", type=click.Path(path_type=Path), default=None, help="workers' logs (default: ./pod_log)")
@click.option("--key-file", envvar="EDL_KEY_FILE", default=None, help="the cluster key (default: ~/.edl/key)")
def up(
    nodes: int,
    slots: str,
    zookeeper: str | None,
    zookeeper_port: int,
    server_port: int,
    tls: str,
    data_dir: Path | None,
    log_dir: Path | None,
    key_file: str | None,
) -> None:
    """Start ZooKeeper, a JobServer and nodes on this machine; Ctrl-C stops them."""
    folder = (data_dir or Path("~/.edl")).expanduser().absolute()
    logs = (log_dir or Path("pod_log")).absolute()
    key = key_path(key_file)
    _check(slots, server_port)
    ended = threading.Event()
    try:
        load_or_create_key(key)
        # The handlers stay until everything is down, so a second Ctrl-C cannot interrupt the way down.
        with _signals_set(ended), ExitStack() as running:
            hosts = zookeeper or _own_zookeeper(folder, zookeeper_port, running)
            click.echo(f"zookeeper   {hosts}")
            common = ["--zookeeper", hosts, "--key-file", str(key), "--tls", tls]
            node_children: list[Child] = []
            running.callback(_stop_nodes, node_children)  # after the JobServer, which would plan around each of them
            options = [*common, "--server-port", str(server_port)]
            server = _start("jobserver", "jobserver", options, folder, ended)
            running.callback(_stop, server, SERVER_STOP_TIMEOUT_S)
            url = f"{'https' if tls == 'on' else 'http'}://127.0.0.1:{server_port}"
            api = Api(url, key)
            _wait(lambda: api.get("/health")["leader"], [server], ended)
            click.echo(f"jobserver   {url}")
            for number in range(1, nodes + 1):
                options = [*common, *_node_options(number, nodes, slots, logs)]
                node_children.append(_start(f"node-{number}", "jobclient", options, folder, ended))
            children = [server, *node_children]
            for row in _wait(lambda: _registered(api, nodes), children, ended):
                click.echo(f"{row['node']:<12}{row['slots']} slots")
            if url != DEFAULT_SERVER:
                click.echo(f"elsewhere   export EDL_SERVER={url}")
            click.echo("page        edl ui --open")
            click.echo("ready       edl submit -- python train.py   (Ctrl-C stops everything)")
            ended.wait()
            for child in children:
                child.check()
            click.echo("stopping")
    except (LocalZooKeeperError, CoordError) as error:
        raise CommandFailed(str(error)) from error
    except _Interrupted:
        click.echo("stopping")


def _check(slots: str, port: int) -> None:
    """Raises BadInput: at a port that is taken another JobServer might answer, and would be taken for ours."""
    if slots != "auto" and not (slots.isdecimal() and int(slots) >= 1):
        raise BadInput(f"--slots is {slots!r}: give a number of at least 1, or auto")
    if not 0 < port <= _LAST_PORT:
        raise BadInput(f"--server-port is {port}: it must be between 1 and {_LAST_PORT}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(f"--server-port {port} cannot be listened on: {error.strerror}; choose another") from error


class _Interrupted(Exception):
    """Raised when Ctrl-C or SIGTERM comes before everything is up."""


@contextmanager
def _signals_set(ended: threading.Event) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _own_zookeeper(folder: Path, port: int, running: ExitStack) -> str:
    server = LocalZooKeeper(folder / "zookeeper", port)
    server.start()
    running.callback(server.stop)
    return server.hosts


def _start(name: str, module: str, options: list[str], folder: Path, ended: threading.Event) -> Child:
    return Child(name, module, options, folder / "logs" / f"{name}.log", ended)


def _stop(child: Child, timeout_s: float) -> None:
    child.stop(timeout_s)
    click.echo(f"stopped     {child.name}")


def _stop_nodes(nodes: list[Child]) -> None:
    for node in nodes:
        node.ask_to_end()
    for node in nodes:
        _stop(node, NODE_STOP_TIMEOUT_S)


def _node_options(number: int, nodes: int, slots: str, logs: Path) -> list[str]:
    """Several nodes share this machine's cores; its GPUs go to a single node only."""
    options = ["--node", f"node-{number}", "--log-dir", str(logs / f"node-{number}" if nodes > 1 else logs)]
    if slots != "auto":
        options += ["--slots", slots]
    elif nodes > 1:
        options += ["--slots", str(max(1, len(os.sched_getaffinity(0)) // nodes))]
    return options if nodes == 1 else [*options, "--gpus", "none"]


def _registered(api: Api, nodes: int) -> list[dict[str, Any]] | None:
    expected = {f"node-{number}" for number in range(1, nodes + 1)}
    rows = [row for row in api.get("/nodes")["nodes"] if row["node"] in expected]
    return rows if len(rows) == nodes else None


def _wait(ready: Callable[[], Any], children: list[Child], ended: threading.Event) -> Any:
    """The first answer of `ready` that is not empty; fails as soon as a child ends."""
    problem = ""
    for _ in range(int(READY_TIMEOUT_S / READY_INTERVAL_S)):
        try:
            answer = ready()
            if answer:
                return answer
        except CommandFailed as error:
            problem = f": {error.message}"
        if ended.wait(READY_INTERVAL_S):
            for child in children:
                child.check()
            raise _Interrupted
    logs = ", ".join(str(child.log) for child in children)
    raise CommandFailed(f"not ready after {READY_TIMEOUT_S:g} s{problem}; see {logs}")
