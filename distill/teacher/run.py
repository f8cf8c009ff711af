"""A teacher server from its settings to its end: load, warm up, listen, register, serve, leave."""

import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

from distill import oip
from distill.errors import ConfigError, ModelError
from distill.records import TeacherRecord
from distill.teacher.config import MB, ServeConfig
from distill.teacher.engine import Engine
from distill.teacher.fingerprint import model_hash
from distill.teacher.listing import Listing, Place
from distill.teacher.loading import Loaded, load_model
from distill.teacher.registration import Registration
from distill.teacher.replica import prepare, replicas
from distill.teacher.server import BACKLOG, Limits, Server
from distill.teacher.service import Identity, Service
from distill.teacher.signature import InputSpec, Serving, check_normalisation
from edl_collective.coord.clock import Clock, SystemClock
from edl_collective.coord.key_file import services_access
from edl_collective.coord.paths import Paths
from edl_collective.coord.zk_store import ZkStore

logger = logging.getLogger(__name__)

#: after the last answer, for a batch that nobody waits for
STOP_TIMEOUT_S = 5.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: a batch that runs for longer takes the teacher off the list: the model hangs, though the process lives
STUCK_S = 60.0


def serve(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `say` gets the line with the URL.

    Raises ModelError, ConfigError, CoordError (no ZooKeeper), OSError (the port is taken).
    """
    clock = SystemClock()
    listener = socket.create_server((config.host, config.port), backlog=BACKLOG)  # before the model: it may be taken
    with listener:
        service = build(config, clock)
        limits = Limits(config.max_connections, config.max_memory_mb * MB, drain_timeout_s=config.drain_timeout_s)
        server = Server(listener, service, clock, limits, tls_context(config))
        port = listener.getsockname()[1]
        with _listed(config, service, port, clock) as wake:
            service.engine.start()

            def leave(*_: object) -> None:
                server.leave()
                server.post(wake)

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, leave)
            if config.token is None and config.host not in LOOPBACK:
                logger.warning("everybody who reaches %s may ask: set EDL_TEACHER_TOKEN", config.url(port))
            say(f"teacher {service.identity.name} at {config.url(port)} ({service.identity.model_hash})")
            server.run()
        if not service.engine.stop(STOP_TIMEOUT_S):
            logger.warning("a batch was still running")


@contextmanager
def _listed(config: ServeConfig, service: Service, port: int, clock: Clock) -> Iterator[Callable[[], None]]:
    """Be listed in ZooKeeper, if the settings name it; yields what makes a change known at once."""
    if config.zookeeper is None or config.service is None:
        yield lambda: None
        return
    engine = service.engine
    place = Place(config.own_id(port), config.url(port), config.job, config.worker, clock.wall_s())
    listing = Listing(place, service.metadata(), engine.serving.normalisation, engine.replica_count)

    def wanted() -> TeacherRecord | None:
        if engine.stuck_s() > STUCK_S:
            return None
        return listing.record(engine.stats, engine.queue_length, draining=service.leaving)

    access = services_access(config.zookeeper, config.root, os.environ)
    store = ZkStore(config.zookeeper, session_timeout_s=config.session_timeout_s, access=access).start()
    try:
        registration = Registration(store, Paths(config.root), config.service, place.teacher, wanted)
        registration.start()
        try:
            yield registration.wake
        finally:
            registration.close()
    finally:
        store.close()


def build(config: ServeConfig, clock: Clock) -> Service:
    """Load the model and warm it up. Raises ModelError, ConfigError."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    devices = _devices(config.gpu_ids)
    loaded = load_model(
        config.model,
        arguments=config.model_args,
        checkpoint=config.checkpoint,
        checkpoint_state=config.checkpoint_state,
    )
    serving = _serving(config, loaded)
    digest = model_hash(loaded.fingerprint, serving.inputs, serving.normalisation, serving.precision, serving.answer)
    module = prepare(loaded, config.precision, on_gpu=bool(config.gpu_ids))
    engine = Engine(
        replicas(module, devices, serving, compiled=config.compiled),
        serving,
        clock,
        delay_s=config.batch_delay_ms / 1000,
    )
    engine.warm_up()
    parameters: oip.Parameters = {"normalisation": serving.normalisation, "precision": serving.precision}
    parameters |= {"max_batch": serving.max_batch, "edl": _version()}
    identity = Identity(config.name or loaded.name, digest, _classes(config, engine.outputs), parameters)
    return Service(identity, engine, clock, token=config.token, max_body_bytes=config.max_body_mb * MB)


def _serving(config: ServeConfig, loaded: Loaded) -> Serving:
    inputs = _inputs(config.inputs, loaded)
    if config.normalisation is not None:
        check_normalisation(config.normalisation, inputs)
    return Serving(inputs, config.normalisation, config.precision, config.answer, config.max_batch, config.outputs)


def _inputs(declared: tuple[InputSpec, ...], loaded: Loaded) -> tuple[InputSpec, ...]:
    if declared:
        return declared
    if loaded.inputs is None:
        raise ConfigError("--input is missing: the model does not say what it takes, such as image:uint8:3,224,224")
    return loaded.inputs


def _devices(gpu_ids: Sequence[int]) -> list[str]:
    if not gpu_ids:
        return ["cpu"]
    count = torch.cuda.device_count()
    missing = [number for number in gpu_ids if number >= count]
    if missing:
        raise ConfigError(f"--gpu_ids names GPU {missing[0]}, and this machine has {count} that torch can use")
    return [f"cuda:{number}" for number in gpu_ids]


def _classes(config: ServeConfig, outputs: Sequence[oip.TensorSpec]) -> int | None:
    """As declared, which must be what the first output has; else the second size of a first output of two."""
    shape = outputs[0].shape
    found = shape[1] if len(shape) >= 2 else None
    if config.classes is not None and found != config.classes:
        raise ModelError(
            f"output {outputs[0].name!r} has the shape {list(shape)}, and --classes says {config.classes}: "
            "is it the right model?"
        )
    return config.classes or (found if len(shape) == 2 else None)


def tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    """To serve https with, if the settings say so. Raises ConfigError."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--tls-cert {config.tls_cert} and --tls-key {config.tls_key}: {error}") from error
    return context


def _version() -> str | None:
    """Of this distribution; None in a checkout that is not installed."""
    try:
        return version("edl-elastic")
    except PackageNotFoundError:
        return None
