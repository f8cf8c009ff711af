"""Teachers, and requests in flight at them, that do what a test says."""

from collections.abc import Iterable

from distill.flight import Action, Close, Deliver, Drop, Fault, Flight, GiveUp, Probe, Send
from distill.limits import Limits
from distill.source import Teacher

A, B, C = (Teacher(name, f"http://{name}:1") for name in "abc")


class World:
    """Carries out a flight's actions: what is under way at teachers, and what became of each request."""

    def __init__(self, teachers: Iterable[Teacher] = (A, B), **limits: float) -> None:
        self.limits = Limits(**limits)  # type: ignore[arg-type]
        self.flight = Flight(self.limits)
        self.now_s = 0.0
        self.named: tuple[Teacher, ...] = ()
        #: attempt -> (request, teacher)
        self.sent: dict[int, tuple[int, Teacher]] = {}
        self.probes: list[Teacher] = []
        self.delivered: list[int] = []
        self.given_up: list[int] = []
        self.closed: list[Teacher] = []
        self.name(teachers)

    def name(self, teachers: Iterable[Teacher]) -> None:
        self.named = tuple(teachers)
        self._do(self.flight.teachers_changed(self.named, self.now_s))

    def post(self, *requests: int) -> None:
        for request in requests:
            self._do(self.flight.posted(request, 32, self.now_s))

    def at(self, teacher: Teacher) -> list[int]:
        """Attempts under way at a teacher, oldest first."""
        return [attempt for attempt, (_, who) in self.sent.items() if who == teacher]

    def answer(self, attempt: int, *, closing: bool = False) -> None:
        del self.sent[attempt]
        self._do(self.flight.answered(attempt, self.now_s, closing=closing))

    def fail(self, attempt: int, fault: Fault) -> None:
        del self.sent[attempt]
        self._do(self.flight.failed(attempt, fault, f"is {fault}", self.now_s))

    def probed(self, teacher: Teacher, reason: str | None = None) -> None:
        self.probes.remove(teacher)
        self._do(self.flight.probed(teacher, reason, self.now_s))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self._do(self.flight.tick(self.now_s))

    def warm_up(self, latency_s: float = 0.02, requests: int = 40) -> None:
        """Answers of this latency, so that deadlines and hedges are known; requests are numbered from -1 down."""
        for request in range(-requests, 0):
            self.post(request)
            self.now_s += latency_s
            for attempt in list(self.sent):
                self.answer(attempt)
        self.delivered.clear()

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                assert action.teacher in self.named
                self.sent[action.attempt] = (action.request, action.teacher)
                assert len(self.at(action.teacher)) <= self.limits.max_depth
            elif isinstance(action, Deliver):
                self.delivered.append(action.request)
            elif isinstance(action, Drop):
                del self.sent[action.attempt]
            elif isinstance(action, Probe):
                self.probes.append(action.teacher)
            elif isinstance(action, Close):
                assert not self.at(action.teacher)
                self.closed.append(action.teacher)
                self.probes = [p for p in self.probes if p != action.teacher]
            else:
                assert isinstance(action, GiveUp)
                self.given_up.append(action.request)
