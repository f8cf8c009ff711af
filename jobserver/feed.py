"""Tells those who follow the cluster what changes, as it changes.

One thread looks, for all who follow, when the store or a service wakes it, and not at all while nobody follows. What
changes within REST_S is told together. Invariant: what waits for a slow client is bounded; a client that is too slow
is told everything anew when it has time, instead of every change.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from edl_collective.coord.clock import Clock
from edl_collective.coord.errors import CoordError
from jobserver.api_models import ApiError, Json
from jobserver.controller import SERVICES_EVERY_S, View
from jobserver.snapshot import Snapshot
from jobserver.topics import (
    JobEvents,
    Topic,
    cluster_events_topic,
    job_topic,
    jobs_topic,
    nodes_topic,
    service_topic,
    services_topic,
)

logger = logging.getLogger(__name__)

#: between two looks; longer where a look takes long, so that it leaves time for other requests
REST_S = 0.2
REST_TIMES_LOOK = 4.0
#: after a look that failed, which may have left nobody to wake the next one
AGAIN_S = 1.0
MAX_STREAMS = 200
#: what may wait for a client before it is told everything anew
MAX_WAITING_BYTES = 1024 * 1024
JOIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client follows. `after`: the number of the last event of `job` that it knows."""

    topics: frozenset[str]
    job: str | None = None
    service: str | None = None
    after: int = -1

    @property
    def services(self) -> bool:
        return self.service is not None or "services" in self.topics

    @property
    def names(self) -> list[str]:
        extra = [f"{kind}/{name}" for kind, name in (("job", self.job), ("service", self.service)) if name is not None]
        return ["server", *sorted(self.topics), *extra]


@dataclass(eq=False, slots=True)
class Follower:
    """One client; `wake` is called from another thread when there is something to take."""

    wish: Wish
    wake: Callable[[], None]
    waiting: deque[bytes] = field(default_factory=deque)
    waiting_bytes: int = 0
    #: it has to be told everything: it is new, or was too slow
    behind: bool = True
    closed: bool = False


class Feed:
    """The followers and what they follow. For several threads.

    snapshot: the newest, with services if asked for; raises CoordError. server: what is said of this server, of which
    the snapshot is None while the store cannot be reached.
    """

    def __init__(
        self, view: View, snapshot: Callable[[bool], Snapshot], server: Callable[[Snapshot | None], Json], clock: Clock
    ) -> None:
        self._view = view
        self._load = snapshot
        self._server = server
        self._clock = clock
        self._lock = threading.Lock()
        self._followers: set[Follower] = set()
        self._topics: dict[str, Topic] = {}
        self._events: dict[str, JobEvents] = {}
        self._woken = threading.Event()
        self._rested = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failed = False
        #: the newest that could be loaded, and what is said of this server
        self._snapshot = Snapshot()
        self._server_now: Json = {}

    @property
    def followers(self) -> int:
        return len(self._followers)

    def join(self, follower: Follower) -> None:
        """Begin to follow; everything can be taken at once. Raises ApiError 503 when too many do.

        One that has left before does not.
        """
        wish = follower.wish
        with self._lock:
            if follower.closed:
                return
            if self._closed:
                raise ApiError(503, "this JobServer ends")
            if len(self._followers) >= MAX_STREAMS:
                raise ApiError(503, f"{MAX_STREAMS} streams are open already: close some, or ask another JobServer")
            if not self._followers or (wish.services and not self._follows_services()):
                self._look(wish.services)
            self._followers.add(follower)
            self._rested.clear()
            self._add_topics(wish)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edl-feed", daemon=True)
                self._thread.start()

    @property
    def count(self) -> int:
        """Streams that are open."""
        return len(self._followers)

    def leave(self, follower: Follower) -> None:
        """The last to leave ends the thread."""
        with self._lock:
            follower.closed = True
            self._followers.discard(follower)
            names = {name for other in self._followers for name in other.wish.names}
            self._topics = {name: topic for name, topic in self._topics.items() if name in names}
            jobs = {other.wish.job for other in self._followers}
            self._events = {job: events for job, events in self._events.items() if job in jobs}
            if not self._followers:
                self._woken.set()
                self._rested.set()

    def take(self, follower: Follower) -> Sequence[bytes]:
        """What `follower` has not been told yet."""
        with self._lock:
            if follower.closed:
                return []
            if not follower.behind:
                found = list(follower.waiting)
            else:
                found = [self._topics[name].everything() for name in follower.wish.names]
                if follower.wish.job is not None:
                    found += self._events[follower.wish.job].after(follower.wish.after)
            follower.waiting.clear()
            follower.waiting_bytes = 0
            follower.behind = False
        return found

    def close(self) -> None:
        """End all streams."""
        with self._lock:
            self._closed = True
            followers, thread = list(self._followers), self._thread
            for follower in followers:
                follower.closed = True
        for follower in followers:
            follower.wake()
        self._woken.set()
        self._rested.set()
        if thread is not None:
            thread.join(JOIN_TIMEOUT_S)

    def _add_topics(self, wish: Wish) -> None:
        for name in wish.names:
            if name not in self._topics:
                topic = self._topics[name] = self._make(name, wish)
                topic.look(self._snapshot)
        if wish.job is not None and wish.job not in self._events:
            events = self._events[wish.job] = JobEvents(wish.job)
            events.look(self._snapshot)

    def _make(self, name: str, wish: Wish) -> Topic:
        if name == f"job/{wish.job}" and wish.job is not None:
            return job_topic(wish.job, self._clock.wall_s)
        if name == f"service/{wish.service}" and wish.service is not None:
            return service_topic(wish.service)
        if name == "server":
            return Topic("server", lambda _: self._server_now)
        topics = {"events": cluster_events_topic, "jobs": jobs_topic, "nodes": nodes_topic, "services": services_topic}
        return topics[name]()

    def _run(self) -> None:
        """Look whenever woken, until nobody follows."""
        forget = [wakes.add(self._woken.set) for wakes in (self._view.wakes, self._view.service_wakes)]
        try:
            while True:
                self._woken.clear()
                began_s = self._clock.monotonic_s()
                with self._lock:
                    if not self._followers or self._closed:
                        self._thread = None
                        self._rested.clear()
                        return
                    woken = self._turn()
                for follower in woken:
                    follower.wake()
                took_s = self._clock.monotonic_s() - began_s
                self._rested.wait(max(REST_S, REST_TIMES_LOOK * took_s))
                self._woken.wait(self._longest_wait_s())
        finally:
            for end in forget:
                end()

    def _longest_wait_s(self) -> float | None:
        """When to look unasked: for services, which are looked at no more often, and after a look that failed."""
        services = self._follows_services() and self._view.service_wakes.rung
        return SERVICES_EVERY_S if services else AGAIN_S if self._failed else None

    def _follows_services(self) -> bool:
        return any(follower.wish.services for follower in tuple(self._followers))

    def _turn(self) -> set[Follower]:
        """Look, and put what changed before those who follow it; who has something to take now."""
        self._failed = True
        try:
            self._look(self._follows_services())
            woken = self._tell()
        except Exception:  # a fault in one look must not end all streams
            logger.exception("the streams cannot be told")
            return set()
        self._failed = False
        return woken

    def _tell(self) -> set[Follower]:
        woken: set[Follower] = set()
        for name, topic in self._topics.items():
            told = topic.look(self._snapshot)
            if told is not None:
                woken |= self._give((f for f in self._followers if name in f.wish.names), told)
        for job, events in self._events.items():
            for told in events.look(self._snapshot):
                woken |= self._give((f for f in self._followers if f.wish.job == job), told)
        return woken

    def _look(self, services: bool) -> None:
        try:
            self._snapshot = self._load(services)
        except CoordError as error:
            logger.info("the streams show what was known: %s", error)
            self._server_now = self._server(None)
        else:
            self._server_now = self._server(self._snapshot)

    def _give(self, followers: Iterable[Follower], told: bytes) -> set[Follower]:
        """Append `told` to what waits for each that is not behind."""
        woken = set()
        for follower in followers:
            woken.add(follower)
            if follower.behind:
                continue
            follower.waiting.append(told)
            follower.waiting_bytes += len(told)
            if follower.waiting_bytes > MAX_WAITING_BYTES:
                follower.behind = True
                follower.waiting.clear()
                follower.waiting_bytes = 0
        return woken


class Alarm:
    """Wakes a coroutine of `loop` from any thread; a loop that has ended is asleep for good."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()

    def ring(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError as error:
            logger.debug("nobody to wake: %s", error)

    async def wait(self, timeout_s: float) -> None:
        """Until it rings, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        self._event.clear()
