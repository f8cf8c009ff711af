"""The options of a DistillReader: from its arguments, a TOML file and the environment, the later ones winning. [pure]

An operator can so point a finished script to other teachers: the file is named by EDL_DISTILL_CONFIG, and each option
has an environment variable, EDL_DISTILL_ and its name in capitals (EDL_DISTILL_TEACHERS, EDL_DISTILL_NOP=1, ...).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from distill.errors import ConfigError
from distill.source import parse_teachers

PREFIX = "EDL_DISTILL_"
CONFIG = "EDL_DISTILL_CONFIG"
#: what `edl teacher` uses as well
TOKEN = "EDL_TEACHER_TOKEN"  # noqa: S105 - the name of a variable
BLOCK, HARD_LABELS = "block", "hard_labels"


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """All that a DistillReader can be told. Times in seconds, sizes in MiB."""

    #: fixed teachers, "host:port,https://host:port,..."
    teachers: str | None = None
    #: or a service that is followed in ZooKeeper
    service: str | None = None
    #: None: that of the job (EDL_ZOOKEEPER, EDL_ZOOKEEPER_ROOT), else 127.0.0.1:2181 and /edl
    zookeeper: str | None = None
    root: str | None = None
    max_teachers: int | None = None
    #: name of the model at teachers that serve several
    model: str | None = None
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    #: rows of a request at most; None: a batch is a request
    teacher_batch_size: int | None = None
    #: batches that are read ahead at least, and so requests that can be in flight
    window: int = 8
    #: the largest batch with its predictions; only what is written costs memory
    slot_mb: int = 256
    #: this part of the requests may be asked of a second teacher, when the first is late; 0: none
    hedge_share: float = 0.05
    #: when all teachers are gone: "block", or "hard_labels" with a mask
    on_no_teacher: str = BLOCK
    no_teacher_timeout_s: float = 600.0
    hard_labels_after_s: float = 1.0
    #: check the teachers before the first batch
    preflight: bool = True
    #: no teachers at all: zeros, to see what the reader itself costs
    nop: bool = False
    #: a file for the timeline
    timeline: str | None = None
    #: predictions in half precision are given as float32; distill.losses computes in float32 anyway
    as_float32: bool = False

    def check(self) -> None:
        """Raises ConfigError for what cannot work, naming the option."""
        if not self.nop and (self.teachers is None) == (self.service is None):
            raise ConfigError(
                "a DistillReader needs teachers: set_fixed_teacher(...) (EDL_DISTILL_TEACHERS) or "
                "set_dynamic_teacher(...) (EDL_DISTILL_SERVICE), one of them"
            )
        if self.teachers is not None:
            parse_teachers(self.teachers)
        if self.on_no_teacher not in (BLOCK, HARD_LABELS):
            raise ConfigError(f"on_no_teacher must be {BLOCK!r} or {HARD_LABELS!r}, not {self.on_no_teacher!r}")
        for name in ("teacher_batch_size", "max_teachers", "window", "slot_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name in ("no_teacher_timeout_s", "hard_labels_after_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, it is {getattr(self, name)}")
        if not 0 <= self.hedge_share <= 1:
            raise ConfigError(f"hedge_share must be from 0 to 1, it is {self.hedge_share}")


def override(options: ReaderOptions, file_text: str | None, environ: Mapping[str, str]) -> ReaderOptions:
    """The options with those of a TOML file and of the environment put over them. Raises ConfigError."""
    changes: dict[str, Any] = {}
    if file_text is not None:
        try:
            changes = tomllib.loads(file_text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"the file of {CONFIG} is not TOML: {error}") from error
    if TOKEN in environ and options.token is None:
        changes.setdefault("token", environ[TOKEN])
    for name, variable, default in (
        ("zookeeper", "EDL_ZOOKEEPER", "127.0.0.1:2181"),
        ("root", "EDL_ZOOKEEPER_ROOT", "/edl"),
    ):
        if getattr(options, name) is None:
            changes.setdefault(name, environ.get(variable) or default)
    changes |= {n.removeprefix(PREFIX).lower(): v for n, v in environ.items() if n.startswith(PREFIX) and n != CONFIG}
    unknown = sorted(set(changes) - {field.name for field in fields(ReaderOptions)})
    if unknown:
        raise ConfigError(f"unknown options of a DistillReader: {', '.join(unknown)}")
    changes = {name: _parse(name, value) for name, value in changes.items()}
    # Who names teachers from outside means these, whatever the script names.
    if "teachers" in changes and "service" not in changes:
        changes["service"] = None
    elif "service" in changes and "teachers" not in changes:
        changes["teachers"] = None
    return replace(options, **changes)


_KINDS: dict[str, type] = {
    **dict.fromkeys(("max_teachers", "teacher_batch_size", "window", "slot_mb"), int),
    **dict.fromkeys(("no_teacher_timeout_s", "hard_labels_after_s", "hedge_share"), float),
    **dict.fromkeys(("preflight", "nop", "as_float32"), bool),
}
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _parse(name: str, value: Any) -> Any:
    kind = _KINDS.get(name, str)
    try:
        if isinstance(value, str) and kind is bool:
            return _TRUTH[value.strip().lower()]
        if isinstance(value, str) or (kind is float and type(value) is int):
            return kind(value)
    except (ValueError, KeyError):
        raise ConfigError(f"{PREFIX}{name.upper()}={value!r} is no {kind.__name__}") from None
    if type(value) is not kind:
        raise ConfigError(f"option {name} must be a {kind.__name__}, not {value!r}")
    return value
