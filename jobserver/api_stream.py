"""GET /api/v1/stream, which tells what changes while it changes, and GET /api/v1/jobs/JOB/events, page by page.

Server-sent events: `change` (parts of a topic that are not as they were, or all of them), `events` (of the job that is
followed; its id is the number of the last), and `beat` with the server's time, so that silence means that it is gone.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Protocol

import msgspec
from fastapi import FastAPI, Header, Query, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from edl_collective.coord.clock import Clock
from edl_collective.coord.paths import check_name
from edl_collective.coord.store import Session, Store
from jobserver.api_models import ApiError, Json
from jobserver.controller import Controller
from jobserver.feed import Alarm, Feed, Follower, Wish
from jobserver.snapshot import Job, Snapshot
from jobserver.topics import event_page, message

TOPICS = ("jobs", "nodes", "services", "events")
#: a client that hears nothing for a few times as long knows that the server is gone
BEAT_S = 5.0
MAX_EVENTS = 1000


class Cluster(Protocol):
    """What the endpoints need of the JobServer."""

    def snapshot(self, *, services: bool = False) -> Snapshot: ...

    def job(self, name: str) -> tuple[Job, Snapshot]: ...


def add_stream(app: FastAPI, cluster: Cluster, controller: Controller, clock: Clock, store: Store) -> None:
    """Add the endpoints; `app.state.feed` is to be closed before the server ends."""
    feed = Feed(
        controller.view,
        lambda services: cluster.snapshot(services=services),
        lambda snapshot: _server(controller, store.session, snapshot),
        clock,
    )
    app.state.feed = feed

    @app.get(
        "/api/v1/stream",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "server-sent events, without an end"}},
    )
    async def stream(
        topics: Annotated[str, Query(description="of jobs, nodes, services and events, separated by commas")] = "",
        job: Annotated[str | None, Query(description="a job to follow with its events")] = None,
        service: Annotated[str | None, Query(description="a service to follow")] = None,
        after: Annotated[int, Query(description="number of the last event of the job that is known")] = -1,
        last_event_id: Annotated[int | None, Header(description="the same, as browsers say it")] = None,
    ) -> StreamingResponse:
        """What changes, as it changes: first everything, then `change`, `events` and `beat`."""
        wish = Wish(_topics(topics), job, service, after if last_event_id is None else last_event_id)
        for kind, name in (("job", job), ("service", service)):
            if name is not None:
                check_name(kind, name)
        alarm = Alarm(asyncio.get_running_loop())
        follower = Follower(wish, alarm.ring)
        try:
            await asyncio.to_thread(feed.join, follower)
        except BaseException:
            feed.leave(follower)
            raise
        return _Told(feed, follower, _tell(feed, follower, alarm, clock))

    @app.get("/api/v1/jobs/{job}/events")
    def events(
        job: str,
        after: Annotated[int | None, Query(description="only events with a higher number")] = None,
        before: Annotated[int | None, Query(description="only events with a lower number, the newest of them")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="at most so many")] = MAX_EVENTS,
    ) -> Response:
        """The history of a job, oldest first; `next` is the `after`, or the `before`, of the next page."""
        found = event_page(cluster.job(job)[0].events, after, before, limit)
        return Response(msgspec.json.encode(found), media_type="application/json")

    @app.get("/api/v1/events")
    def cluster_events(
        after: Annotated[int | None, Query(description="only events with a higher number")] = None,
        before: Annotated[int | None, Query(description="only events with a lower number, the newest of them")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="at most so many")] = MAX_EVENTS,
    ) -> Response:
        """The history of what belongs to no job, as that of a job."""
        found = event_page(cluster.snapshot().events, after, before, limit)
        return Response(msgspec.json.encode(found), media_type="application/json")


def _topics(text: str) -> frozenset[str]:
    found = frozenset(name for name in text.split(",") if name)
    for name in sorted(found - set(TOPICS)):
        raise ApiError(422, f"there is no topic {name!r}: choose of {', '.join(TOPICS)}", "topics")
    return found


class _Told(StreamingResponse):
    """A stream that ends with its client, wherever it is then: nobody ends a generator that is left while it yields."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, follower: Follower, messages: AsyncIterator[bytes]) -> None:
        super().__init__(messages, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._feed = feed
        self._follower = follower

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # the lock may be held for a while, and nothing can be waited for when this is cancelled
            asyncio.get_running_loop().run_in_executor(None, self._feed.leave, self._follower)


async def _tell(feed: Feed, follower: Follower, alarm: Alarm, clock: Clock) -> AsyncIterator[bytes]:
    """What the client is told, until the server ends."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while not follower.closed:
        if loop.time() >= due_s:
            yield _beat(clock)
            due_s = loop.time() + BEAT_S
        for told in await asyncio.to_thread(feed.take, follower):
            yield told
        await alarm.wait(max(0.0, due_s - loop.time()))


def _beat(clock: Clock) -> bytes:
    return message("beat", {"at": round(clock.wall_s(), 3)})


def _server(controller: Controller, session: Session, snapshot: Snapshot | None) -> Json:
    """What pages show of the control plane; it changes rarely."""
    problems = [controller.failure] if controller.failure else []
    problems += [problem.text for problem in snapshot.problems] if snapshot else []
    return {
        "zookeeper": session.value,
        "leader": snapshot.leader.server if snapshot and snapshot.leader else None,
        "leading": controller.epoch is not None,
        "reason": controller.reason,
        "problems": list(dict.fromkeys(problems)),
    }


def close_streams(app: FastAPI) -> None:
    """End them, and looks at checkpoints, so that the server need not wait for its clients to go."""
    feed: Feed = app.state.feed
    feed.close()
    app.state.checkpoint_looks.close()
