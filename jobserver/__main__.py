"""python -m jobserver: one JobServer, leader or standby, until SIGTERM or SIGINT.

Ends with 0 after a signal, with 2 and one clear line when it cannot start. It owns no ZooKeeper and no workers, so
its end touches no job.
"""

import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from edl_collective.coord.access import Access
from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.errors import CoordError, Disconnected
from edl_collective.coord.key_file import load_or_create_key
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.paths import Paths
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.store import Store
from edl_collective.coord.tls import ends_at, server_context, server_context_of
from edl_collective.coord.zk_store import ZkStore
from jobclient.http_limits import LimitedHttp
from jobclient.options import ConfigError
from jobserver.api import Service, create_app
from jobserver.api_stream import close_streams
from jobserver.collecting import Collecting, begin_collecting
from jobserver.config import Config, from_process
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig

logger = logging.getLogger("jobserver")

SHUTDOWN_TIMEOUT_S = 3
#: how long before its end a certificate is warned of
CERTIFICATE_NOTICE_S = 14 * 86400.0


class CannotStart(Exception):
    """Raised when the JobServer cannot start, with a sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit status."""
    try:
        config = from_process(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        _quieten(config.log_level)
        _serve(config)
    except (ConfigError, CannotStart, CoordError) as error:
        print(f"jobserver: {error}", file=sys.stderr)
        return 2
    return 0


def _quieten(level: int) -> None:
    """What libraries say is for debugging: we say it ourselves where it matters, once."""
    if level > logging.DEBUG:
        for name in ("kazoo", "uvicorn"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _serve(config: Config) -> None:
    begin_collecting()
    ended = _on_signals()
    key = load_or_create_key(config.key_file)
    tls = _tls(config, key)
    listener = _listen(config.host, config.server_port)
    with listener:
        url = f"{'https' if tls else 'http'}://{_reachable(config.host)}:{listener.getsockname()[1]}"
        store = _connect(config, key)
        try:
            with _controller(config, store, url, SpecSigner(key)) as controller:
                service = Service(store, Paths(config.zookeeper_root), controller, SystemClock(), key, config.changing)
                logger.info("JobServer %s serves %s", config.server_name, url)
                _run_http(service, listener, ended, tls)
        finally:
            store.close()
    logger.info("JobServer %s ends", config.server_name)


def _on_signals() -> threading.Event:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: then asyncio sets TCP_NODELAY
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror}; choose another --server_port") from error
    return listener


def _reachable(host: str) -> str:
    name = host if host not in ("0.0.0.0", "::") else socket.gethostname()  # noqa: S104  compared, not bound
    return f"[{name}]" if ":" in name else name


def _connect(config: Config, key: ClusterKey) -> ZkStore:
    logger.info("connecting to ZooKeeper at %s", config.zookeeper)
    access = Access.of_key(key, Paths(config.zookeeper_root), required=config.closed_tree)
    store = ZkStore(config.zookeeper, session_timeout_s=config.session_timeout_s, access=access)
    try:
        return store.start(config.zookeeper_wait_s)
    except Disconnected as error:
        raise CannotStart(f"{error} (--zookeeper-wait is {config.zookeeper_wait_s:g} s)") from error


@contextmanager
def _controller(config: Config, store: Store, url: str, signer: SpecSigner) -> Iterator[Controller]:
    paths = Paths(config.zookeeper_root)
    rules = ReconcileConfig(
        finish_timeout_s=config.finish_timeout_s,
        save_timeout_s=config.save_timeout_s,
        absence_timeout_s=config.absence_timeout_s,
        pack=config.pack,
        load_ceiling=config.load_ceiling,
        patience_s=config.patience_s,
        changing=config.changing,
    )
    leadership = Leadership(store, paths, config.server_name, url)
    collecting = Collecting(SystemClock())
    controller = Controller(
        *(store, paths, leadership, SystemClock(), rules, signer, config.session_timeout_s),
        rest=collecting.between_decisions,
    )
    controller.start()
    try:
        yield controller
    finally:
        controller.stop()


def _tell_of_end(certificate: Path, left_s: float) -> None:
    if left_s < 0:
        logger.error("--tls-cert %s has expired: clients refuse it; give another, and restart", certificate)
    elif left_s < CERTIFICATE_NOTICE_S:
        logger.warning("--tls-cert %s expires in %.1f days", certificate, left_s / 86400)


def _tls(config: Config, key: ClusterKey) -> ssl.SSLContext | None:
    """Raises TlsError."""
    if not config.tls:
        return None
    if config.tls_cert is not None:
        context = server_context_of(config.tls_cert, config.tls_key)
        _tell_of_end(config.tls_cert, ends_at(config.tls_cert) - SystemClock().wall_s())
        return context
    return server_context(key, [config.host, socket.gethostname(), socket.getfqdn()])


def _run_http(
    service: Service, listener: socket.socket, ended: threading.Event, tls: ssl.SSLContext | None = None
) -> None:
    """Serve until `ended`; on a thread, because uvicorn would answer a signal by dying of it."""
    app = create_app(service)
    settings = uvicorn.Config(
        app,
        http=LimitedHttp,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    settings.load()
    settings.ssl = tls
    server = uvicorn.Server(settings)

    def serve() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            ended.set()

    thread = threading.Thread(target=serve, name="edl-http")
    thread.start()
    ended.wait()
    close_streams(app)
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    sys.exit(main())
