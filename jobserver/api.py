"""The HTTP interface of a JobServer: every server answers every request.

Invariants: each request carries a bearer token (jobserver.api_access); a write is a compare-and-set on the job's spec,
which is signed with it, and needs no leader; each error is {"error": one sentence, "field": name or null}.
Decisions are taken elsewhere.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import Clock
from edl_collective.coord.errors import CoordError, Disconnected, NotEmpty, NotFound, RecordTooLarge, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import JobSpec
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.store import Session, Store, Versioned
from jobserver.api_access import HEALTH_PATH, Role, Tokens, add_access, as_seen_by, refusal, role_of
from jobserver.api_changes import add_changes, tagged
from jobserver.api_checkpoints import add_checkpoints
from jobserver.api_goodput import add_goodput
from jobserver.api_metrics import add_metrics
from jobserver.api_models import (
    MAX_BODY_BYTES,
    ApiError,
    Json,
    differences,
    job_detail,
    job_rows,
    node_rows,
    parse_spec,
)
from jobserver.api_nodes import add_orders
from jobserver.api_openapi import describe_itself
from jobserver.api_page import add_page
from jobserver.api_stream import add_stream
from jobserver.api_views import add_views
from jobserver.changing import Changing
from jobserver.checkpoint_looks import CheckpointLooks
from jobserver.controller import Controller
from jobserver.drain_orders import cancel_cordon, cancel_drain, order_cordon, order_drain
from jobserver.forget import delete_tree, first_alive, read_tree
from jobserver.metrics import ServerSight
from jobserver.node_logs import fetch_log
from jobserver.retry import changed, retry
from jobserver.shown import Shown
from jobserver.snapshot import Job, Snapshot
from jobserver.versions import check_version, version_of

logger = logging.getLogger(__name__)

WRITE_ATTEMPTS = 5
BODY_TIMEOUT_S = 30.0
#: how long a request waits for a session that was interrupted: one that begins anew is there in a moment
PATIENCE_S = 1.0


class Service:
    """What the endpoints do, without HTTP."""

    def __init__(
        self,
        store: Store,
        paths: Paths,
        controller: Controller,
        clock: Clock,
        key: ClusterKey,
        changing: Changing | None,
    ) -> None:
        self._store = store
        self._paths = paths
        self._controller = controller
        self._clock = clock
        self._changing = changing
        self._key = key
        self._signer = SpecSigner(key)
        self.tokens = Tokens.of(key)
        self.shown = Shown(clock)
        self._connected = threading.Event()
        store.on_session(self._session_changed)
        self._session_changed(store.session)

    def snapshot(self, *, services: bool = False) -> Snapshot:
        """The newest; one that the end of a session cut short is taken again in the next. Raises Disconnected.

        Without a session it is said soon: requests that wait for a store that is away would keep all others waiting.
        """
        if not self._connected.wait(PATIENCE_S):
            raise Disconnected("the JobServer's --zookeeper", "it has no session")
        try:
            return self._controller.view.load(services=services)
        except Disconnected:
            if not self._connected.wait(PATIENCE_S):
                raise
            return self._controller.view.load(services=services)

    def _session_changed(self, session: Session) -> None:
        if session is Session.CONNECTED:
            self._connected.set()
        else:
            self._connected.clear()

    def job(self, name: str) -> tuple[Job, Snapshot]:
        """Raises ApiError 404, or 409 for a job whose records cannot be read."""
        snapshot = self.snapshot()
        job = snapshot.jobs.get(name)
        if job is not None:
            return job, snapshot
        if name in snapshot.unreadable_jobs:
            texts = [p.text for p in snapshot.problems if p.path.startswith(f"{self._paths.jobs}/{name}/")]
            raise ApiError(409, f"job {name} is left alone: {'; '.join(texts)}")
        raise ApiError(404, f"there is no job {name}", "job")

    def now_s(self) -> float:
        """Wall time."""
        return self._clock.wall_s()

    def detail(self, name: str) -> Json:
        """Raises ApiError as `job` does."""
        job, snapshot = self.job(name)
        return {"version": version_of(job.spec), **job_detail(job, snapshot, self.now_s())}

    def submit(self, body: bytes) -> tuple[int, Json]:
        """201 and the job; 200 if the same job is there already. Raises ApiError 409 if another one is.

        Records that a job of that name left without a spec are deleted first: they are not the new job's.
        """
        spec = parse_spec(body, self._changing, self._clock.wall_s())
        path = self._paths.spec(spec.job)
        submitted_at = self._controller.view.submission_s(path, spec.submitted_at)
        spec = msgspec.structs.replace(spec, submitted_at=submitted_at)
        there = self._store.children(self._paths.job(spec.job))
        if there and "spec" not in there:
            self._forget(spec.job, only_left_overs=True)
        try:
            self._store.set(path, self._signer.sign(path, spec), None)
        except VersionConflict:
            old = self.job(spec.job)[0].spec.value
            wrong = differences(old, spec)
            if wrong:
                text = f"job {spec.job} exists already with a different {', '.join(wrong)}"
                raise ApiError(409, text, wrong[0]) from None
            return 200, {"job": spec.job, "created": False, "spec": msgspec.to_builtins(old)}
        return 201, {"job": spec.job, "created": True, "spec": msgspec.to_builtins(spec)}

    def change(self, name: str, edit: Callable[[JobSpec], JobSpec], if_match: str | None = None) -> Json:
        """Compare-and-set the spec of a job that has not ended. Raises ApiError, 412 if it is not at `if_match`."""
        path = self._paths.spec(name)
        unsure = False
        for _ in range(WRITE_ATTEMPTS):
            job, _snapshot = self.job(name)
            if not unsure:
                check_version(job.spec, if_match)
            if job.status is not None and job.status.value.phase.terminal:
                raise ApiError(409, f"job {name} has ended: {job.status.value.phase}")
            spec = edit(job.spec.value)
            if spec == job.spec.value:
                return changed(name, job.spec.version, spec)
            check_version(job.spec, if_match)
            try:
                data = self._signer.sign(path, spec, job.spec.version + 1)
                version = self._store.set(path, data, job.spec.version)
            except VersionConflict:
                continue
            except Disconnected:  # if it was written nevertheless, the next look shows it
                if not self._connected.wait(PATIENCE_S):
                    raise
                unsure = True
                continue
            except NotFound:
                raise ApiError(404, f"there is no job {name}", "job") from None
            return changed(name, version, spec)
        raise ApiError(409, f"job {name} is being changed by others: try again")

    def retry(self, name: str, if_match: str | None = None) -> Json:
        """Submit a job that has failed or was stopped again. Raises ApiError."""
        now_s = self._controller.view.submission_s(self._paths.spec(name), self._clock.wall_s())
        return retry(self._store, self._paths, name, self.job, self._signer.sign, if_match, now_s)

    def delete(self, name: str) -> Json:
        """Forget a job that has ended, or what is left of one that has no spec. Raises ApiError 409 while it runs."""
        self._forget(name)
        return {"job": name, "deleted": True}

    def _forget(self, name: str, *, only_left_overs: bool = False) -> None:
        for _ in range(WRITE_ATTEMPTS):
            try:
                tree = read_tree(self._store, self._paths.job(name))
                has_spec = self._paths.spec(name) in tree
                if only_left_overs and has_spec:
                    return
                snapshot = self._check_deletable(name, (has_spec or not tree) and not self._is_refused(name, tree))
                alive = first_alive(tree, self._paths, snapshot)
                if alive is not None:
                    text = (
                        f"worker {alive.worker} of job {name} has not ended on node {alive.node}: try again when it has"
                    )
                    raise ApiError(409, text)
                delete_tree(self._store, tree)
                self._controller.view.deleted(self._paths.spec(name))
                return
            except (VersionConflict, NotFound, NotEmpty):
                continue
        raise ApiError(409, f"job {name} is being changed by others: try again")

    def _is_refused(self, name: str, tree: Mapping[str, Versioned]) -> bool:
        """Whether it has a spec of which nothing is run: not signed, or put back."""
        path = self._paths.spec(name)
        return path in tree and self._controller.view.refuses(path, tree[path].data)

    def _check_deletable(self, name: str, has_spec: bool) -> Snapshot:
        """The newest snapshot. Raises ApiError 404, or 409 for a job that has not ended or cannot be read."""
        if not has_spec:
            return self.snapshot()
        job, snapshot = self.job(name)
        if job.status is None or not job.status.value.phase.terminal:
            raise ApiError(409, f"job {name} has not ended: stop it first")
        return snapshot

    def drain(self, node: str, body: bytes) -> Json:
        return order_drain(self._store, self._paths, self.snapshot(), node, body, self._clock.wall_s())

    def undrain(self, node: str) -> Json:
        return cancel_drain(self._store, self._paths, node)

    def cordon(self, node: str, body: bytes) -> Json:
        return order_cordon(self._store, self._paths, self.snapshot(), node, body, self._clock.wall_s())

    def uncordon(self, node: str) -> Json:
        return cancel_cordon(self._store, self._paths, node)

    def health(self, trusted: bool) -> Json:
        """Never fails: it says how much is wrong, and to those with the token what."""
        problems = [self._controller.failure] if self._controller.failure else []
        leader = None
        try:
            snapshot = self.snapshot()
            problems += [problem.text for problem in snapshot.problems]
            leader = snapshot.leader.server if snapshot.leader else None
        except CoordError as error:
            problems.append(str(error))
        problems = list(dict.fromkeys(problems))
        public: Json = {
            "ok": not problems and self._store.session is Session.CONNECTED,
            "leader": leader,
            "zookeeper": self._store.session.value,
            "problem_count": len(problems),
        }
        if not trusted:
            return public
        epoch, reason = self._controller.epoch, self._controller.reason
        unsettled_s = round(self._controller.view.unsettled_s, 3)
        ours: Json = {"leading": epoch is not None, "epoch": epoch, "problems": problems, "reason": reason}
        return {**public, **ours, "unsettled_s": unsettled_s}

    def sight(self, streams: int, answers: dict[int, int]) -> ServerSight:
        """This server, for metrics."""
        controller = self._controller
        leading, connected = controller.epoch is not None, self._store.session is Session.CONNECTED
        counts = (controller.problem_count, controller.turns, controller.turn_s, streams, answers)
        return ServerSight(leading, connected, *counts)

    def log(self, name: str, worker: str, offset: int, limit: int) -> Response:
        """Part of a worker's log, from the JobClient that has it. Raises ApiError."""
        job, snapshot = self.job(name)
        at = job.workers.get(worker)
        if at is None:
            raise ApiError(404, f"job {name} has no record of a worker {worker}", "worker")
        node = snapshot.nodes.get(at.value.node)
        if node is None:
            raise ApiError(503, f"the log of {worker} is on node {at.value.node}, which is gone")
        return fetch_log(self._key, node, name, worker, offset, limit)


async def read_body(request: Request) -> bytes:
    """The body, refused when it is larger than any request needs."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from None
    return bytes(body)


Body = Annotated[bytes, Depends(read_body)]


def create_app(service: Service) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title="EDL JobServer", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json")
    add_access(app, service.tokens, service.shown.forget)
    _add_errors(app)
    _add_jobs(app, service)
    _add_job_views(app, service)
    _add_cluster(app, service)
    _add_health(app, service)
    add_metrics(app, service)
    add_changes(app, service, read_body)
    add_orders(app, service, read_body)
    add_goodput(app, service)
    add_checkpoints(app, service, CheckpointLooks(service._clock))
    add_views(app, service)
    add_stream(app, service, service._controller, service._clock, service._store)
    add_page(app)
    describe_itself(app)
    return app


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _shown(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return refusal(error.status, error.error, error.field)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return refusal(422, f"{field}: {first['msg']}", field)

    @app.exception_handler(Disconnected)
    async def no_store(_: Request, error: Disconnected) -> Response:
        return refusal(503, str(error))

    @app.exception_handler(RecordTooLarge)
    async def too_large(_: Request, error: RecordTooLarge) -> Response:
        return refusal(413, str(error))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:  # the server logs it with its traceback
        return refusal(500, f"the JobServer failed: {type(error).__name__}: {error}")

    @app.exception_handler(CoordError)
    async def refused_write(_: Request, error: CoordError) -> Response:
        return refusal(409, str(error))

    @app.exception_handler(ValueError)
    async def bad_name(_: Request, error: ValueError) -> Response:
        return refusal(422, str(error))


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.post("/api/v1/jobs")
    def submit(body: Body) -> Response:
        status, value = service.submit(body)
        return _json(value, status)

    @app.get("/api/v1/jobs")
    def jobs() -> Response:
        return _shown(service.shown.answer("jobs", service.snapshot, job_rows))

    @app.get("/api/v1/jobs/{job}")
    def describe(job: str, request: Request) -> Response:
        return tagged(as_seen_by(request, service.detail(job)))

    @app.delete("/api/v1/jobs/{job}")
    def delete(job: str) -> Response:
        return _json(service.delete(job))


def _add_job_views(app: FastAPI, service: Service) -> None:
    @app.get("/api/v1/jobs/{job}/logs/{worker}")
    def logs(job: str, worker: str, offset: int = 0, limit: int = 65536) -> Response:
        return service.log(job, worker, offset, limit)


def _add_cluster(app: FastAPI, service: Service) -> None:
    @app.get("/api/v1/nodes")
    def nodes() -> Response:
        return _shown(service.shown.answer("nodes", service.snapshot, node_rows))


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get(HEALTH_PATH)
    def health(request: Request) -> Response:
        return _json(service.health(role_of(request) is not Role.NOBODY))
