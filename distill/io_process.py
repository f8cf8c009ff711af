"""The IO process of a student: `python -m distill.io_process`, started and watched by the trainer's DistillReader.

It takes the numbers of filled batches from DataLoader workers, asks teachers, and puts the predictions where the
batch lies. All that is decided, `distill.flight` decides. Settings come as JSON on standard input (a token must not
be seen in the list of processes); batches and answers over a socket pair. It ends when the trainer does, and holds
nothing that a successor would miss: after a kill -9 the trainer starts another one and posts again what is not
answered.

Imports no torch. One thread; discovery may have threads of its own and wakes the loop through an eventfd.
"""

import array
import contextlib
import logging
import math
import os
import random
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable

from distill.batches_in_flight import Batch, Batches
from distill.errors import DistillError, TeacherRefused
from distill.flight import Action, Close, Deliver, Drop, Flight, GiveUp, Probe, Send
from distill.io_messages import (
    NO_SLOT,
    Abandon,
    Abandoned,
    Answer,
    Cancel,
    Cancelled,
    Done,
    GaveUp,
    Go,
    Look,
    Post,
    Request,
    Result,
    Status,
    decode_request,
    encode,
)
from distill.io_settings import IoSettings, decode
from distill.ring import Control, Ring, fence
from distill.source import FixedTeachers, Teacher, TeacherSource
from distill.starvation import Starvation
from distill.teacher_links import Failure, Outcome, TeacherLinks
from distill.timeline import Timeline

logger = logging.getLogger(__name__)

_MESSAGE_BYTES = 1 << 16
#: room for the descriptors beside a message
_BESIDE_BYTES = socket.CMSG_SPACE(64 * array.array("i").itemsize)
#: shortest and longest sleep of the loop
_LEAST_S, _MOST_S = 0.005, 0.5


class IoProcess:
    """The loop: what the sockets and the clock say goes into the flight, what it answers is carried out."""

    def __init__(self, settings: IoSettings, trainer: socket.socket, ring: Ring) -> None:
        self._settings = settings
        self._trainer = trainer
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._stopped = False
        self._unsent: deque[bytes] = deque()
        #: the message that is being read
        self._message = memoryview(bytearray(_MESSAGE_BYTES))
        self._flight = Flight(settings.limits, lambda: random.uniform(0.75, 1.25))
        self._batches = Batches(ring, settings.teacher_batch_size, settings.below)
        timeline = Timeline(settings.timeline, "io process") if settings.timeline else None
        self._links = TeacherLinks(
            settings, self._watch, self._unwatch, self._answered, self._failed, self._probed, timeline
        )
        self._timeline = timeline
        self._source = self._make_source()
        self._named: tuple[Teacher, ...] = ()
        #: why some of them are not asked
        self._strangers = ""
        #: retries and hedges, as the trainer is told
        self._counts = (0, 0)
        self._status: Status | None = None
        self._ring, self._control = ring, Control(ring)
        self._starvation = Starvation(time.monotonic())
        #: the flight was told something since its next tick was computed
        self._moved = True
        self._tick_s = self._ticked_s = 0.0
        self._go: Go | None = None
        self._watch(trainer.fileno(), select.EPOLLIN, self._from_trainer)
        self._watch(os.pidfd_open(settings.trainer_pid), select.EPOLLIN, self._stop)
        if settings.go is not None:
            self._start_asking(settings.go)

    def run(self) -> None:
        """Until the trainer says so, or is gone."""
        while not self._stopped:
            self._follow_source()
            for fd, events in self._poll.poll(self._sleep_s()):
                handler = self._handlers.get(fd)
                if handler is not None:  # not closed by an event of the same round
                    handler(events)
            self._tick()
            self._once_a_second()
        self._source.close()
        if self._timeline is not None:
            self._timeline.flush()

    # ---- the loop -------------------------------------------------------------------------------------------------

    def _watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        if fd in self._handlers:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
        self._handlers[fd] = handler

    def _unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        self._poll.unregister(fd)

    def _stop(self, _events: int = 0) -> None:
        self._stopped = True

    def _sleep_s(self) -> float:
        if self._moved:
            self._plan_tick()
        return min(_MOST_S, max(0.0, self._tick_s - time.monotonic()))

    def _tick(self) -> None:
        """Tell the flight that time has passed, when that may mean something to it; most rounds only send."""
        now_s = time.monotonic()
        if self._moved:
            self._plan_tick()
        if now_s >= self._tick_s:
            self._ticked_s = now_s
            self._do(self._flight.tick(now_s))
            self._plan_tick()

    def _plan_tick(self) -> None:
        self._moved = False
        wake_s = self._flight.wake_at()
        self._tick_s = math.inf if wake_s is None else max(wake_s, self._ticked_s + _LEAST_S)

    def _make_source(self) -> TeacherSource:
        dynamic = self._settings.dynamic
        if dynamic is None:
            return FixedTeachers([Teacher(*fields) for fields in self._settings.teachers])
        wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watch(wakeup, select.EPOLLIN, lambda _: _drain(wakeup))
        from distill import discovery  # loads kazoo: only for those who need it

        return discovery.connect(dynamic, wake=lambda: os.eventfd_write(wakeup, 1), environ=os.environ)

    def _follow_source(self) -> None:
        teachers = self._source.teachers()
        changed = teachers is not self._named and teachers != self._named
        if changed:
            self._named = teachers
            self._take_on()
        if changed or self._status is None or self._status.why_none is not None or not self._flight.usable:
            self._tell_status()

    def _take_on(self) -> None:
        """Ask those that are named, but for the ones that are listed with another model than was agreed on."""
        agreed = None if self._go is None else self._go.model_hash
        strangers = [t for t in self._named if None not in (agreed, t.model_hash) and t.model_hash != agreed]
        text = "; ".join(
            f"{t.teacher} serves another model: its hash is {t.model_hash}, not {agreed}" for t in strangers
        )
        if text and text != self._strangers:
            logger.warning("not asked: %s", text)
        self._strangers = text
        fit = [teacher for teacher in self._named if teacher not in strangers]
        self._do(self._flight.teachers_changed(fit, time.monotonic()))

    def _tell_status(self) -> None:
        """Tell the trainer who serves, when that has changed."""
        why, since_s = None, None
        if not self._flight.usable:
            why = "; ".join(filter(None, (self._flight.why_not(), self._strangers))) or self._source.why_none()
            before = self._status.none_since_s if self._status is not None else None
            since_s = before if before is not None else time.monotonic()
        named = tuple((t.teacher, t.url, t.model, t.model_hash) for t in self._named)
        status = Status(named, why, since_s, *self._counts)
        if status != self._status:
            self._status = status
            self._tell(status)

    def _once_a_second(self) -> None:
        now_s = time.monotonic()
        if now_s < self._starvation.next_s:
            return
        self._counts = self._flight.retried, self._flight.hedged
        self._tell_status()
        waiting_for = None if self._status is None else self._status.why_none
        self._source.report(self._starvation.report(self._control.read(), now_s, waiting_for))
        if self._timeline is not None:
            self._timeline.flush()

    # ---- the trainer ----------------------------------------------------------------------------------------------

    def _tell(self, message: Answer) -> None:
        self._unsent.append(encode(message))
        self._send_unsent()

    def _send_unsent(self) -> None:
        try:
            while self._unsent:
                self._trainer.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:  # it trains, and will look later
            self._watch(self._trainer.fileno(), select.EPOLLIN | select.EPOLLOUT, self._from_trainer)
        except OSError:
            self._stop()

    def _from_trainer(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._watch(self._trainer.fileno(), select.EPOLLIN, self._from_trainer)
            self._send_unsent()
        try:
            size, beside, _, _ = self._trainer.recvmsg_into([self._message], _BESIDE_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size:
            self._take(decode_request(self._message[:size]), _descriptors(beside))
        else:
            self._stop()

    def _take(self, message: Request, descriptors: list[int]) -> None:
        if isinstance(message, Post):
            batch = self._batches.add(message, descriptors)
            if batch is not None and self._go is not None:
                self._ask(batch)
        elif isinstance(message, Go):
            self._start_asking(message)
        elif isinstance(message, Cancel):
            self._forget(self._batches.remove_below(message.below))
            self._tell(Cancelled(message.below))
        elif isinstance(message, Abandon):
            batch = self._batches.remove(message.seq)
            if batch is not None:
                self._forget([batch])
                self._tell(Abandoned(message.seq))
        else:
            self._stop()

    def _start_asking(self, go: Go) -> None:
        self._go = go
        self._links.agree(go)
        self._take_on()
        for batch in self._batches.all():
            self._ask(batch)

    def _ask(self, batch: Batch) -> None:
        for request, rows in batch.requests():
            self._do(self._flight.posted(request, rows, time.monotonic()))

    def _forget(self, batches: Iterable[Batch]) -> None:
        requests = [request for batch in batches for request, _ in batch.requests()]
        self._do(self._flight.forget(requests, time.monotonic()))

    # ---- actions --------------------------------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action], outcome: Outcome | None = None) -> None:
        """Carry out actions, and those that follow from them; `outcome` is what a Deliver delivers."""
        self._moved = True
        todo = deque(actions)
        while todo:
            todo.extend(self._do_one(todo.popleft(), outcome))

    def _do_one(self, action: Action, outcome: Outcome | None) -> list[Action]:
        if isinstance(action, Send):
            return self._send(action)
        if isinstance(action, Deliver):
            assert outcome is not None
            return self._deliver(action.request, outcome)
        if isinstance(action, Probe):
            reason = self._links.probe(action.teacher)
            if reason is not None:
                return self._flight.probed(action.teacher, reason, time.monotonic())
        elif isinstance(action, Drop):
            self._links.drop(action.attempt)
        elif isinstance(action, Close):
            self._links.close(action.teacher)
        elif isinstance(action, GiveUp):
            batch, _ = self._batches.find(action.request)
            return self._give_up(batch, TeacherRefused.__name__, action.reason)
        return []

    def _send(self, action: Send) -> list[Action]:
        batch, number = self._batches.find(action.request)
        parts = self._links.feeds(batch.post.parts)
        views = batch.views(number, parts)
        failure = self._links.send(action.attempt, action.teacher, parts, views, batch.rows(number))
        if failure is None:
            return []
        return self._flight.failed(action.attempt, *failure, time.monotonic())

    def _deliver(self, request: int, outcome: Outcome) -> list[Action]:
        batch, number = self._batches.find(request)
        try:
            complete = batch.put(number, self._settings.predicts, outcome.outputs)
        except DistillError as error:
            return self._give_up(batch, type(error).__name__, str(error))
        if complete:
            self._batches.remove(batch.post.seq)
            self._tell_done(Done(batch.post.seq, batch.outputs, outcome.teacher.teacher, outcome.latency_s), batch)
        return []

    def _tell_done(self, done: Done, batch: Batch) -> None:
        """Write it into the slot, where the trainer looks first, and wake the trainer if it waits for that."""
        slot = batch.post.slot
        result = b"" if slot == NO_SLOT else encode(Result(done.outputs, done.teacher))
        if slot == NO_SLOT or not self._ring.answer(slot, done.seq, done.latency_s, result):
            self._tell(done)
            return
        fence()
        if self._control.awaits(done.seq):
            self._tell(Look())

    def _give_up(self, batch: Batch, kind: str, reason: str) -> list[Action]:
        self._batches.remove(batch.post.seq)
        self._tell(GaveUp(batch.post.seq, kind, reason))
        return self._flight.forget([request for request, _ in batch.requests()], time.monotonic())

    def _answered(self, attempt: int, outcome: Outcome) -> None:
        self._do(self._flight.answered(attempt, time.monotonic(), closing=outcome.closing), outcome)

    def _failed(self, attempt: int, failure: Failure) -> None:
        self._do(self._flight.failed(attempt, *failure, time.monotonic()))

    def _probed(self, teacher: Teacher, reason: str | None) -> None:
        self._do(self._flight.probed(teacher, reason, time.monotonic()))


def _descriptors(beside: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Those that came beside a message (SCM_RIGHTS)."""
    found = array.array("i")
    for level, kind, data in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _drain(eventfd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(eventfd)


def main() -> int:
    """Read the settings, serve the trainer until it ends."""
    # Both go to the trainer's whole process group; it decides when its IO process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = decode(sys.stdin.buffer.read())
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(name)s: %(message)s")
    trainer = socket.socket(fileno=settings.socket_fd)
    trainer.setblocking(False)
    try:
        process = IoProcess(settings, trainer, Ring(settings.slots, settings.slot_bytes, settings.ring_fd))
    except ProcessLookupError:  # the trainer is gone already
        return 0
    process.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
