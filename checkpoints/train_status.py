"""Where a training run stands: the small record that every checkpoint carries. [pure]

Invariant: `TrainStatus.from_json(status.to_json()) == status`, and fields that a later version adds survive a round
trip through this one. It holds no tensors and no ledger, only a reference to the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from checkpoints.errors import InvalidStatus


@dataclass(frozen=True)
class TrainStatus:
    """Progress of a training run; equal by value.

    Attributes:
        epoch_no: the last COMPLETED epoch, -1 before the first one is complete.
        position: samples already consumed, by all workers together, of epoch `next()`; 0 at an epoch's end.
        global_step: optimizer steps since the beginning of the run.
        samples: samples consumed since the beginning of the run, by all workers together.
        total_batch_size: samples of one global step, 0 if not known.
        world_size: workers at the time of saving, 0 if not known.
        user: the user's own values; JSON types only, so that nothing changes on the way through a file.
        ledger: name of the ledger that proves which samples were consumed, None without one.
        extra: fields of a later version, kept as they are.

    Raises:
        InvalidStatus: on a wrong type, a number out of range, or a user value that JSON cannot hold exactly.
    """

    epoch_no: int = -1
    position: int = 0
    global_step: int = 0
    samples: int = 0
    total_batch_size: int = 0
    world_size: int = 0
    user: Mapping[str, Any] = field(default_factory=dict)
    ledger: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check_int(name, getattr(self, name), least=-1 if name == "epoch_no" else 0)
        if self.ledger is not None and not isinstance(self.ledger, str):
            raise InvalidStatus(f"train status: ledger must be a string or None, not {self.ledger!r}")
        for name in ("user", "extra"):
            object.__setattr__(self, name, _json_copy(name, getattr(self, name)))
        clash = set(self.extra) & _KNOWN
        if clash:
            raise InvalidStatus(f"train status: extra repeats the fields {sorted(clash)}")

    def next(self) -> int:
        """The epoch to train next: `epoch_no + 1`."""
        return self.epoch_no + 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; fields of later versions stand beside ours."""
        known = {name: getattr(self, name) for name in _COUNTS}
        return {**known, "user": dict(self.user), "ledger": self.ledger, **self.extra}

    @classmethod
    def from_dict(cls, value: object) -> TrainStatus:
        """The status in a JSON object as `to_dict` gives it; missing fields take their defaults.

        Raises:
            InvalidStatus: if it is not an object with an `epoch_no`, or a field is wrong.
        """
        if not isinstance(value, dict):
            raise InvalidStatus(f"train status: expected a JSON object, found {type(value).__name__}")
        if "epoch_no" not in value:
            raise InvalidStatus("train status: epoch_no is missing")
        known = {name: item for name, item in value.items() if name in _KNOWN - {"extra"}}
        return cls(**known, extra={name: item for name, item in value.items() if name not in known})

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TrainStatus:
        """The inverse of `to_json`.

        Raises:
            InvalidStatus: if the text is not JSON or not a train status.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidStatus(f"train status: not JSON: {error}") from error
        return cls.from_dict(value)


_COUNTS = ("epoch_no", "position", "global_step", "samples", "total_batch_size", "world_size")
_KNOWN = {item.name for item in fields(TrainStatus)}


def _check_int(name: str, value: object, least: int) -> None:
    # bool is an int in Python; a status with epoch_no=True is a mistake, not epoch 1.
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidStatus(f"train status: {name} must be an integer, not {value!r}")
    if value < least:
        raise InvalidStatus(f"train status: {name} must be at least {least}, not {value}")


def _json_copy(name: str, value: object) -> dict[str, Any]:
    """A deep copy of a mapping, refused if JSON would change it (tuples, integer keys, NaN)."""
    if not isinstance(value, Mapping):
        raise InvalidStatus(f"train status: {name} must be a mapping, not {value!r}")
    return {_key(name, key): _exact(f"{name}[{key!r}]", item) for key, item in value.items()}


def _key(name: str, key: object) -> str:
    if not isinstance(key, str):
        raise InvalidStatus(f"train status: {name} has the key {key!r}, which would change in JSON: use a string")
    return str.__str__(key)


def _exact(where: str, value: object) -> Any:
    try:
        copy = json.loads(json.dumps(value, allow_nan=False))
        changed = copy != value
    except (TypeError, ValueError, RecursionError) as error:
        what = repr(value) if isinstance(value, float) else f"of type {type(value).__name__}"
        raise InvalidStatus(
            f"train status: {where} is {what}, which JSON cannot hold ({error}): give finite numbers, strings, lists "
            "and dicts, or leave it out"
        ) from error
    if changed:
        raise InvalidStatus(f"train status: {where} would change in JSON (a tuple, or a key that is not a string)")
    return copy
