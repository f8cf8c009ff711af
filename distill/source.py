"""Where a student's teachers come from: the seam between the IO process and discovery. [pure]

`FixedTeachers` are written down by the user; `distill.discovery` follows ZooKeeper. The IO process asks again whenever
it is woken, and tells the source once a second how the student does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from distill.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher that may be asked. `teacher` identifies it: the same id with another url or hash is another teacher."""

    teacher: str
    #: http(s)://host:port
    url: str
    model: str | None = None
    #: None: whatever it says when it is asked first
    model_hash: str | None = None
    #: samples a second, if known
    rate: float | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None  # parse_teachers and the records check both
        assert parts.port is not None
        return parts.hostname, parts.port


@dataclass(frozen=True, slots=True)
class StudentReport:
    """How a student does, over the time since the report before."""

    rate: float
    demand: float | None
    starved: float
    starved_s: float
    waiting_for: str | None = None
    #: seconds that each step waited for teachers; of the newest second in which there was one
    wait_s_per_step: float = 0.0


class TeacherSource(Protocol):
    """Who may be asked, now. `teachers` is cheap: it may be called in each round of a loop."""

    def teachers(self) -> tuple[Teacher, ...]: ...

    def why_none(self) -> str:
        """A sentence for people: why `teachers` is empty, and what to do."""

    def report(self, report: StudentReport) -> None: ...

    def close(self) -> None: ...


class FixedTeachers:
    """Teachers that the user named; they are asked as long as they answer."""

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self._teachers = tuple(teachers)

    def teachers(self) -> tuple[Teacher, ...]:
        return self._teachers

    def why_none(self) -> str:
        return "no teachers are named: pass them to set_fixed_teacher, or --distill_teachers host:port,..."

    def report(self, report: StudentReport) -> None:
        """Nobody asks."""

    def close(self) -> None:
        """Nothing is held."""


def parse_teachers(text: str | Sequence[str]) -> tuple[Teacher, ...]:
    """Teachers from "host:port,http://host:port,...", or from a sequence of such. Raises ConfigError."""
    words = text.split(",") if isinstance(text, str) else list(text)
    urls = [_url(word.strip()) for word in words if word.strip()]
    if not urls:
        raise ConfigError("no teacher is named: write host:port, several with commas between them")
    if len(set(urls)) < len(urls):
        raise ConfigError(f"a teacher is named twice in {text!r}")
    return tuple(Teacher(url.split("://", 1)[1], url) for url in urls)


def _url(word: str) -> str:
    url = word if "://" in word else f"http://{word}"
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"teacher {word!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or parts.path.strip("/"):
        raise ConfigError(f"teacher {word!r} must be host:port, http://host:port or https://host:port")
    return f"{parts.scheme}://{parts.netloc}"
