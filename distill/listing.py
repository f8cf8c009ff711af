"""A service as its records show it: who teaches, who learns, and what cannot be read. [pure]"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from distill.errors import ConfigError
from distill.records import StudentRecord, TeacherRecord
from distill.source import parse_teachers
from edl_collective.coord.errors import RecordError
from edl_collective.coord.paths import Key, Paths
from edl_collective.coord.records import decode
from edl_collective.coord.store import Versioned


@dataclass(frozen=True, slots=True)
class Listing:
    """One service, by name of teacher and student."""

    teachers: Mapping[str, TeacherRecord] = field(default_factory=dict)
    students: Mapping[str, StudentRecord] = field(default_factory=dict)
    #: a sentence for each record that is left out
    problems: tuple[str, ...] = ()


def listings(values: Mapping[str, Versioned], paths: Paths) -> dict[str, Listing]:
    """Each service that has a teacher or a student among `values` (by path)."""
    found: dict[str, list[tuple[str, Key, bytes]]] = {}
    for path in sorted(values):
        key = paths.parse(path)
        if key is not None and key.service is not None:
            found.setdefault(key.service, []).append((path, key, values[path].data))
    return {service: _listing(entries) for service, entries in found.items()}


def _listing(entries: Iterable[tuple[str, Key, bytes]]) -> Listing:
    teachers: dict[str, TeacherRecord] = {}
    students: dict[str, StudentRecord] = {}
    problems = []
    for path, key, data in entries:
        try:
            if key.teacher is not None:
                teachers[key.teacher] = _teacher(data, path, key.teacher)
            elif key.student is not None:
                students[key.student] = _student(data, path, key.student)
        except RecordError as error:
            problems.append(str(error))
    return Listing(teachers, students, tuple(problems))


def _teacher(data: bytes, path: str, name: str) -> TeacherRecord:
    record = decode(data, TeacherRecord, path)
    _check_name(path, name, record.teacher)
    try:
        parse_teachers([record.url])
    except ConfigError as error:
        raise RecordError(path, str(error)) from error
    return record


def _student(data: bytes, path: str, name: str) -> StudentRecord:
    record = decode(data, StudentRecord, path)
    _check_name(path, name, record.student)
    return record


def _check_name(path: str, name: str, written: str) -> None:
    if name != written:
        raise RecordError(path, f"it names {written!r}")
