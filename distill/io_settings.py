"""What the trainer tells its IO process when it starts it. [pure]"""

from typing import Any

import msgspec

from distill.io_messages import Go
from distill.limits import Limits


class DynamicTeachers(msgspec.Struct, frozen=True):
    """A service whose teachers are followed in ZooKeeper."""

    hosts: str
    root: str
    service: str
    #: unique among the students of the service, and the same for a process that takes the place of this one
    student: str
    max_teachers: int | None = None
    #: whose student it is, if a JobClient runs it
    job: str | None = None
    worker: str | None = None


class IoSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON object on the IO process's standard input."""

    trainer_pid: int
    #: descriptors that the process inherits, and how the ring is divided
    socket_fd: int
    ring_fd: int
    slots: int
    slot_bytes: int
    predicts: tuple[str, ...]
    #: fixed teachers: the fields of Teacher up to its hash
    teachers: tuple[tuple[str, str, str | None, str | None], ...] = ()
    dynamic: DynamicTeachers | None = None
    #: model of teachers that do not say theirs
    model: str | None = None
    #: rows of a request at most; larger batches are divided
    teacher_batch_size: int | None = None
    token: str | None = None
    ca_file: str | None = None
    limits: Limits = Limits()
    timeline: str | None = None
    log_level: int = 30
    #: after a respawn: what preflight agreed on, and below which sequence number nobody waits
    go: Go | None = None
    below: int = 0


def encode(settings: IoSettings) -> bytes:
    return msgspec.json.encode(settings)


def decode(data: bytes) -> IoSettings:
    """Raises msgspec.ValidationError."""
    settings: Any = msgspec.json.decode(data, type=IoSettings)
    assert isinstance(settings, IoSettings)
    return settings
