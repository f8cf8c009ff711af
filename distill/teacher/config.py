"""The settings of a teacher server, checked once."""

import json
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import ConfigError
from distill.records import Normalisation
from distill.teacher.signature import InputSpec, check_normalisation, parse_input
from edl_collective.coord.paths import Paths, check_name

DEFAULT_PORT = 8500
MB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """All that `edl teacher serve` was told. Raises ConfigError, which names the option."""

    model: str
    name: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    checkpoint_state: str = "model"
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    classes: int | None = None
    normalisation: Normalisation | None = None
    precision: str = "fp32"
    answer: str = "fp16"
    compiled: bool = False
    gpu_ids: tuple[int, ...] = ()
    threads: int | None = None
    max_batch: int = 64
    batch_delay_ms: float = 1.0
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_body_mb: int = 64
    max_memory_mb: int = 1024
    max_connections: int = 1024
    drain_timeout_s: float = 30.0
    zookeeper: str | None = None
    session_timeout_s: float = 10.0
    root: str = "/edl"
    service: str | None = None
    teacher_id: str | None = None
    advertise: str | None = None
    #: of the JobClient that started it, if one did
    job: str | None = None
    worker: str | None = None

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--max-batch", self.max_batch, 1),
            ("--max-body-mb", self.max_body_mb, 1),
            ("--max-memory-mb", self.max_memory_mb, self.max_body_mb),
            ("--max-connections", self.max_connections, 1),
            ("--batch-delay-ms", self.batch_delay_ms, 0),
            ("--drain-timeout", self.drain_timeout_s, 0),
            ("--session-timeout", self.session_timeout_s, 1),
            ("--threads", self.threads or 1, 1),
        ):
            if not least <= value < math.inf:
                raise ConfigError(f"{option} is {value}: it must be at least {least}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}: it must be between 0 (any free port) and 65535")
        if len(set(self.gpu_ids)) < len(self.gpu_ids):
            raise ConfigError(f"--gpu_ids {','.join(map(str, self.gpu_ids))} names a GPU twice")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        if self.normalisation is not None and self.inputs:
            check_normalisation(self.normalisation, self.inputs)
        self._check_service()

    def _check_service(self) -> None:
        if (self.zookeeper is None) != (self.service is None):
            raise ConfigError("--zookeeper and --service go together: where the teacher is listed, and as what")
        try:
            Paths(self.root)
            if self.service is not None:
                check_name("service", self.service)
            if self.teacher_id is not None:
                check_name("teacher", self.teacher_id)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def url(self, port: int) -> str:
        """Where students reach it once it listens on `port`."""
        if self.advertise is not None:
            return self.advertise
        host = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host  # noqa: S104
        return f"{'http' if self.tls_cert is None else 'https'}://{host}:{port}"

    def own_id(self, port: int) -> str:
        """The teacher's id in its service."""
        if self.teacher_id is not None:
            return self.teacher_id
        if self.worker is not None:
            return self.worker
        return check_name("teacher", f"{socket.gethostname()[:40]}-{os.getpid()}-{port}")


def parse_normalisation(mean: str | None, std: str | None, scale: float) -> Normalisation | None:
    """From --mean, --std and --scale; None if neither mean nor std is given. Raises ConfigError."""
    if mean is None and std is None:
        return None
    found = Normalisation(_numbers("--mean", mean or "0"), _numbers("--std", std or "1"), scale)
    if not scale > 0 or not all(value > 0 for value in found.std):
        raise ConfigError("--scale and the values of --std must be above 0")
    if len(found.mean) > 1 and len(found.std) > 1 and len(found.mean) != len(found.std):
        raise ConfigError(f"--mean has {len(found.mean)} values and --std {len(found.std)}")
    return found


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} must be numbers with commas between them") from error
    if not all(math.isfinite(value) for value in values):
        raise ConfigError(f"{option} {text!r} must be finite")
    return values


def parse_arguments(text: str | None) -> dict[str, Any]:
    """From --model-args. Raises ConfigError."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--model-args {text!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--model-args {text!r} must be a JSON object, such as '{{\"num_classes\": 1000}}'")
    return found


def parse_inputs(texts: tuple[str, ...]) -> tuple[InputSpec, ...]:
    """From each --input. Raises ConfigError."""
    found = tuple(parse_input(text) for text in texts)
    if len({spec.name for spec in found}) < len(found):
        raise ConfigError("--input names an input twice")
    return found


def parse_gpu_ids(text: str | None) -> tuple[int, ...]:
    """From --gpu_ids 0,1; none: the CPU. Raises ConfigError."""
    try:
        found = tuple(int(word) for word in (text or "").split(",") if word.strip())
    except ValueError as error:
        raise ConfigError(f"--gpu_ids {text!r} must be numbers with commas between them") from error
    if any(number < 0 for number in found):
        raise ConfigError(f"--gpu_ids {text!r}: numbers must not be negative")
    return found
