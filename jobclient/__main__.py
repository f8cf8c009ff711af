"""`python -m jobclient`: run the JobClient of this machine. See --help.

Builds the configuration and everything that is passed down from it. Exit codes: 0 after SIGTERM or SIGINT, 2 with one
sentence for what the user can put right.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from logging.handlers import RotatingFileHandler

from edl_collective.coord.access import Access, off_loopback
from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.errors import CoordError, Disconnected
from edl_collective.coord.key_file import load_or_create_key
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import NodeRecord, Rendezvous
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.tls import server_context
from edl_collective.coord.zk_store import ZkStore
from edl_collective.messages import AgentMessage
from jobclient.addresses import host_name_problem
from jobclient.agent import Agent
from jobclient.config import Config, parse
from jobclient.health import healthy
from jobclient.node_api import NodeApi, make_app
from jobclient.options import ConfigError
from jobclient.rendezvous_http import RendezvousServer
from jobclient.rendezvous_proxy import JobProxy
from jobclient.run_as import check
from jobclient.submit import ensure_job
from jobclient.worker_env import inherited

logger = logging.getLogger("jobclient")

#: after this long without an answer of ZooKeeper the user is told what is being waited for
_PATIENCE_S = 2.0
#: of --log-file, and how many that are full are kept
_OWN_LOG_BYTES = 16 * 2**20
_OLD_LOGS = 4


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    try:
        config = parse(argv, environ)
        _begin_logging(config)
        _check_user(config)
        key = cluster_key(config)
        api = _bind(config, key)
        problem = host_name_problem(config.address, socket.gethostname())
        if problem is not None:
            logger.warning("%s", problem)
        store = _connect(config, key)
    except (ConfigError, CoordError) as error:
        print(f"jobclient: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_serve(config, key, api, store))
    except (ConfigError, CoordError, OSError) as error:
        print(f"jobclient: {error}", file=sys.stderr)
        return 2
    except ExceptionGroup as group:  # from a task beside the loop
        _, bugs = group.split(CoordError)
        if bugs is not None:
            raise
        for known in group.exceptions:
            print(f"jobclient: {known}", file=sys.stderr)
        return 2
    finally:
        store.close()
    return 0


def _check_user(config: Config) -> None:
    """Raises ConfigError if --run-as cannot work, or protects nothing."""
    if config.run_as is None:
        return
    kept = {"--log-dir": config.log_dir, "--key-file": config.key_file, "the current directory": config.start_dir}
    if config.log_file is not None:
        kept["--log-file"] = config.log_file
    try:
        check(config.run_as, kept, inherited(config.environ) | config.run_as.environment)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    logger.info("workers run as %s", config.run_as.user)


def cluster_key(config: Config) -> ClusterKey:
    """Of the key file. Raises KeyFileError, and ConfigError where one made here would be that of another cluster."""
    if off_loopback(config.zookeeper, config.address) and not config.key_file.exists():
        text = f"--key-file {config.key_file} is not there: copy that of the cluster to this machine"
        raise ConfigError(f"{text} (ZooKeeper or --address is off the loopback, so no new one is made)")
    return load_or_create_key(config.key_file)


def _begin_logging(config: Config) -> None:
    """Standard error, or --log-file, which is rotated. Raises ConfigError."""
    handler: logging.Handler = logging.StreamHandler()
    if config.log_file is not None:
        try:
            config.log_file.parent.mkdir(parents=True, exist_ok=True)
            handler = RotatingFileHandler(config.log_file, maxBytes=_OWN_LOG_BYTES, backupCount=_OLD_LOGS)
        except OSError as error:
            raise ConfigError(f"--log-file {config.log_file} cannot be written: {error.strerror}") from error
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(message)s", handlers=[handler])
    _quieten(config.log_level)


def _quieten(level: int) -> None:
    """What libraries say is for debugging: we say it ourselves where it matters, once."""
    if level > logging.DEBUG:
        for name in ("kazoo", "uvicorn"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _bind(config: Config, key: ClusterKey) -> NodeApi:
    """The HTTP endpoint, bound. Raises ConfigError."""
    try:
        tls = server_context(key, [config.address, socket.gethostname()]) if config.tls else None
        return NodeApi(make_app(config.log_dir, key, config.node), config.address, config.port, tls)
    except OSError as error:
        where = f"--address {config.address} --port {config.port}"
        raise ConfigError(f"cannot listen for {where}: {error.strerror}") from error


def _connect(config: Config, key: ClusterKey) -> ZkStore:
    """A session with ZooKeeper. Raises Disconnected after zookeeper_wait_s."""

    access = Access.of_key(key, Paths(config.zookeeper_root), required=config.closed_tree)

    def attempt(timeout_s: float) -> ZkStore:
        store = ZkStore(config.zookeeper, session_timeout_s=config.session_timeout_s, access=access)
        return store.start(timeout_s)

    try:
        return attempt(min(_PATIENCE_S, config.zookeeper_wait_s))
    except Disconnected as error:
        if config.zookeeper_wait_s <= _PATIENCE_S:
            raise
        logger.warning("%s; trying for %g s (--zookeeper-wait)", error, config.zookeeper_wait_s)
    return attempt(config.zookeeper_wait_s - _PATIENCE_S)


async def _serve(config: Config, key: ClusterKey, api: NodeApi, store: ZkStore) -> None:
    incarnation = secrets.token_hex(8)
    node = NodeRecord(
        node=config.node,
        incarnation=incarnation,
        proof=SpecSigner(key).node_proof(config.node, incarnation),
        address=config.address,
        port=api.port,
        slots=config.slots,
        gpus=config.gpus,
        labels=dict(config.labels),
        started_at=time.time(),
        session_timeout_s=config.session_timeout_s,
        tls=config.tls,
    )
    logger.info("%s", config.devices_text)
    loop = asyncio.get_running_loop()
    trying = loop.create_task(healthy(node, config))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, trying.cancel)
    try:
        node = await trying
    except asyncio.CancelledError:
        logger.info("ended by a signal, before the node was registered")
        return
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    rendezvous = RendezvousServer()
    await rendezvous.start()

    def proxy(job: str, send: Callable[[str, AgentMessage], None]) -> JobProxy:
        def world_changed(record: Rendezvous) -> None:
            logger.info("job %s: generation %d of %d (%s)", job, record.generation, len(record.members), record.cause)

        return JobProxy(job, node.node, node.incarnation, key, send, rendezvous, world_changed)

    agent = Agent(config, node, store, key, proxy)
    api.show(agent.sight)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.close)
    serving = loop.create_task(api.serve())
    try:
        if config.job is not None:
            paths, signer = Paths(config.zookeeper_root), SpecSigner(key)
            await asyncio.to_thread(ensure_job, store, paths, signer, config.job, time.time())
        await agent.run()
    finally:
        api.close()
        await serving
        await rendezvous.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
