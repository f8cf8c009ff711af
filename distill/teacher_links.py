"""The IO process's connections to teachers: which attempt runs on which, and what came of it.

Invariant: each attempt that was sent ends in exactly one call of `answered` or `failed`, unless it is dropped.
Answers are checked (distill.answers) before they count. It decides nothing: who is asked is the flight's affair.
"""

import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from distill import connection, oip
from distill.answers import Asking, Output, WrongAnswer
from distill.connection import Connection
from distill.errors import ConfigError, ProtocolError, TeacherUnavailable
from distill.flight import Fault
from distill.io_messages import Go, Part
from distill.io_settings import IoSettings
from distill.source import Teacher
from distill.timeline import Timeline

#: statuses that say "not now", or "not me"
_BUSY = frozenset({408, 425, 429, 502, 503, 504})
_Place = tuple[str, str]


class Failure(NamedTuple):
    """Why an attempt ended without an answer."""

    fault: Fault
    reason: str


class Outcome(NamedTuple):
    """The good answer to an attempt; `outputs` are valid until the next event of the loop."""

    outputs: Sequence[Output]
    teacher: Teacher
    latency_s: float
    #: it closes the connection, which it did not do after other answers: it may be leaving
    closing: bool = False


@dataclass(eq=False, slots=True)
class _Link:
    """A connection and what runs on it: an attempt, a probe, or nothing."""

    connection: Connection
    teacher: Teacher
    fd: int
    attempt: int | None = None
    probing: bool = False
    rows: int = 0
    #: when the request was given, sent to its last byte, and when the first byte of the answer came
    times: list[float] = field(default_factory=list)


class TeacherLinks:
    """`watch(fd, events, handler)` and `unwatch(fd)` are the owner's loop."""

    def __init__(
        self,
        settings: IoSettings,
        watch: Callable[[int, int, Callable[[int], None]], None],
        unwatch: Callable[[int], None],
        answered: Callable[[int, Outcome], None],
        failed: Callable[[int, Failure], None],
        probed: Callable[[Teacher, str | None], None],
        timeline: Timeline | None,
    ) -> None:
        self._settings = settings
        self._watch, self._unwatch = watch, unwatch
        self._answered, self._failed, self._probed = answered, failed, probed
        #: those that have kept a connection after an answer
        self._keepers: set[_Place] = set()
        self._timeline = timeline
        self._asking = Asking(settings.go or Go(()), settings.predicts, settings.token, settings.model)
        self._idle: defaultdict[_Place, list[_Link]] = defaultdict(list)
        self._links: dict[int, _Link] = {}
        self._attempts: dict[int, _Link] = {}
        self._context: ssl.SSLContext | None = None

    def agree(self, go: Go) -> None:
        """What preflight agreed on; before it nothing is sent."""
        self._asking = Asking(go, self._settings.predicts, self._settings.token, self._settings.model)

    def feeds(self, parts: Sequence[Part]) -> list[Part]:
        """The parts of a batch that are sent."""
        return self._asking.feeds(parts)

    def send(
        self, attempt: int, teacher: Teacher, parts: Sequence[Part], views: connection.Buffers, rows: int
    ) -> Failure | None:
        """Send `rows` rows of `parts`, which lie in `views`; a Failure that shows at once is returned."""
        head = self._asking.head(teacher, parts, rows)
        try:
            link = self._open(teacher)
            link.attempt, link.rows, link.times = attempt, rows, [time.monotonic()]
            self._attempts[attempt] = link
            self._request(link, [head, *views])
        except (TeacherUnavailable, ConfigError) as error:
            broken = self._attempts.pop(attempt, None)
            if broken is None:
                return Failure(Fault.UNREACHABLE, str(error))
            self._close(broken)
            return Failure(Fault.BROKEN, str(error))
        return None

    def drop(self, attempt: int) -> None:
        """Stop an attempt."""
        link = self._attempts.pop(attempt, None)
        if link is not None:
            link.attempt = None
            self._close(link)

    def probe(self, teacher: Teacher) -> str | None:
        """Ask whether it is ready, on a connection of its own; what is wrong at once is returned."""
        try:
            link = self._connect(teacher)
        except (TeacherUnavailable, ConfigError) as error:
            return str(error)
        link.probing = True
        self._request(link, [self._asking.get(teacher, "/v2/health/ready")])
        return None

    def close(self, teacher: Teacher) -> None:
        """Close what is open to a teacher that has nothing any more."""
        self._idle.pop(_place(teacher), None)
        for link in [link for link in self._links.values() if _place(link.teacher) == _place(teacher)]:
            if link.attempt is None:
                self._close(link)

    # ---- connections ----------------------------------------------------------------------------------------------

    def _open(self, teacher: Teacher) -> _Link:
        idle = self._idle[_place(teacher)]
        return idle.pop() if idle else self._connect(teacher)

    def _connect(self, teacher: Teacher) -> _Link:
        context = self._tls() if teacher.url.startswith("https:") else None
        opened = Connection(teacher.address, context)
        link = _Link(opened, teacher, opened.fileno())
        self._links[link.fd] = link
        self._watch(link.fd, connection.EVENTS, lambda _: self._ready(link))
        return link

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self._settings.ca_file)
            except OSError as error:
                raise ConfigError(f"cannot be asked: the certificates of {self._settings.ca_file}: {error}") from error
        return self._context

    def _request(self, link: _Link, buffers: connection.Buffers) -> None:
        link.connection.request(buffers)
        if link.connection.receiving:
            link.times.append(time.monotonic())

    def _close(self, link: _Link) -> None:
        if self._links.get(link.fd) is link:
            del self._links[link.fd]
            self._unwatch(link.fd)
            link.connection.close()

    def _ready(self, link: _Link) -> None:
        try:
            answer = link.connection.ready()
        except (TeacherUnavailable, ProtocolError) as error:
            self._broke(link, error)
            return
        self._note_times(link)
        if answer is not None:
            self._complete(link, answer)

    def _note_times(self, link: _Link) -> None:
        if len(link.times) == 1 and (link.connection.receiving or link.connection.begun):
            link.times.append(time.monotonic())
        if len(link.times) == 2 and link.connection.begun:
            link.times.append(time.monotonic())

    def _broke(self, link: _Link, error: Exception) -> None:
        idle = self._idle[_place(link.teacher)]
        if link in idle:
            idle.remove(link)
        self._close(link)
        fault = Fault.WRONG if isinstance(error, ProtocolError) else Fault.BROKEN
        if not link.connection.connected:
            fault = Fault.UNREACHABLE
        if link.probing:
            self._probed(link.teacher, str(error))
        elif link.attempt is not None:
            del self._attempts[link.attempt]
            self._failed(link.attempt, Failure(fault, str(error)))

    def _complete(self, link: _Link, answer: connection.Answer) -> None:
        outcome = self._judge(link, answer)
        attempt, link.attempt = link.attempt, None
        if link.probing or answer.closes:
            self._close(link)
        else:
            self._keepers.add(_place(link.teacher))
            self._idle[_place(link.teacher)].append(link)
        if link.probing:
            self._probed(link.teacher, outcome.reason if isinstance(outcome, Failure) else None)
        elif attempt is not None:
            del self._attempts[attempt]
            if isinstance(outcome, Failure):
                self._failed(attempt, outcome)
            else:
                self._answered(attempt, outcome)

    def _judge(self, link: _Link, answer: connection.Answer) -> Outcome | Failure:
        now_s = time.monotonic()
        if answer.status != 200:
            fault = Fault.BUSY if answer.status in _BUSY else Fault.REFUSED
            return Failure(fault, f"answers {answer.status}: {oip.decode_error(bytes(answer.body[:1000]))}")
        if link.probing:
            return Outcome((), link.teacher, 0.0)
        try:
            outputs = self._asking.check(link.teacher, answer.head_bytes, answer.body, link.rows)
        except WrongAnswer as error:
            return Failure(Fault.WRONG, str(error))
        if self._timeline is not None:
            self._draw(self._timeline, link, now_s)
        closing = answer.closes and _place(link.teacher) in self._keepers
        return Outcome(outputs, link.teacher, now_s - link.times[0], closing)

    def _draw(self, timeline: Timeline, link: _Link, now_s: float) -> None:
        given_s, sent_s, begun_s = (*link.times, now_s, now_s)[:3]
        track = f"{link.teacher.teacher} #{link.fd}"
        timeline.span(track, "send", given_s, sent_s, rows=link.rows)
        timeline.span(track, "infer", sent_s, begun_s, rows=link.rows)
        timeline.span(track, "receive", begun_s, now_s, rows=link.rows)


def _place(teacher: Teacher) -> _Place:
    return teacher.teacher, teacher.url
