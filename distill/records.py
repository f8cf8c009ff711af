"""What teachers and students say of themselves in ZooKeeper, each in a path that ends with its session. [pure]

A teacher registers from its own process and only after an inference has succeeded; a student from its IO process. Both
write again when what they say has changed, at most once a second. All that students must agree on (distill.balance)
follows from these records alone, never from a clock or from the order of a listing.
"""

import math
from typing import Any

import msgspec

from distill.oip import TensorSpec
from edl_collective.coord.records import Record

#: rates and demands are written again when they have changed by more than this part
MATERIAL = 0.1


def _close(a: tuple[float, ...], a_scale: float, b: tuple[float, ...], b_scale: float) -> bool:
    channels = max(len(a), len(b))
    wide = [values * channels if len(values) == 1 else values for values in (a, b)]
    if len(wide[0]) != len(wide[1]):
        return False
    return all(math.isclose(x * a_scale, y * b_scale, rel_tol=1e-6) for x, y in zip(*wide, strict=True))


class Normalisation(msgspec.Struct, frozen=True):
    """What a teacher does to uint8 pixels before its model sees them: (pixel / scale - mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0

    def same_as(self, other: "Normalisation | None") -> bool:
        """Whether both do the same but for rounding: 57.12 of 255 is 0.224, and one value stands for each channel."""
        if other is None:
            return False
        pairs = zip((self.mean, self.std), (other.mean, other.std), strict=True)
        return all(_close(a, self.scale, b, other.scale) for a, b in pairs)


class TeacherRecord(Record, frozen=True, kw_only=True):
    """A teacher that serves: where, what, and how fast."""

    teacher: str
    #: http(s)://host:port, without a path
    url: str
    model: str
    #: of the weights and of all that changes the answers; None for a foreign server, which does not tell
    model_hash: str | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    normalisation: Normalisation | None = None
    classes: int | None = None
    #: samples a second that it can answer, measured at its start and then under load
    rate: float | None = None
    #: samples a second that it answers, latency of its answers as it sees them, requests that wait
    answered_rate: float = 0.0
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    queue: int = 0
    #: it answers what it has, and wants nothing new
    draining: bool = False
    #: the job and worker whose process it is, when a JobClient runs it
    job: str | None = None
    worker: str | None = None
    started_at: float = 0.0


class StudentRecord(Record, frozen=True, kw_only=True):
    """A student that reads through teachers."""

    student: str
    #: teachers that it may have at once; None: any number
    max_teachers: int | None = None
    #: samples a second that it would consume if it never waited for teachers; None until it is known
    demand: float | None = None
    #: samples a second that it consumes, and of each second of its steps the part that it waited for teachers
    rate: float = 0.0
    starved: float = 0.0
    #: seconds that it has waited for teachers in all, and at each step, lately
    starved_s: float = 0.0
    wait_s_per_step: float = 0.0
    #: teachers that it uses now, by id
    teachers: tuple[str, ...] = ()
    #: those of them that are at home elsewhere, see distill.balance
    shared: tuple[str, ...] = ()
    #: why it stands still, if it does
    waiting_for: str | None = None
    job: str | None = None
    worker: str | None = None
    started_at: float = 0.0


def settled(new: float | None, written: float | None) -> float | None:
    """What a record says next: `written`, unless `new` is more than MATERIAL away from it.

    Noise must not move teachers: all students answer each figure that changes.
    """
    if new is None or written is None:
        return new
    return new if abs(new - written) > MATERIAL * max(abs(new), abs(written)) else written


def to_dict(record: TeacherRecord | StudentRecord) -> dict[str, Any]:
    """For --json and metrics: the record as plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    return plain
