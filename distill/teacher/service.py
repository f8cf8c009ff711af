"""What each path of the protocol answers, for one model; knows no sockets.

Paths: /v2, /v2/health/{live,ready}, /v2/models/stats, /v2/models/M[/versions/1][/ready|/stats|/infer], /metrics.
Health may be asked without a token: who watches a server need not be allowed to use it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from distill import oip
from distill.errors import ModelError, ProtocolError
from distill.exposition import CONTENT_TYPE
from distill.teacher.batching import Job, Outputs
from distill.teacher.codec import Question, QuestionReader, write_answer
from distill.teacher.engine import Engine
from distill.teacher.http_head import Answer, Head, HttpError
from distill.teacher.reports import metrics, statistics
from edl_collective.coord.auth import same
from edl_collective.coord.clock import Clock

SERVER = "edl-teacher"
VERSION = "1"
EXTENSIONS = ("binary_tensor_data", "statistics")
PLATFORM = "pytorch_edl"
#: of a request that carries no tensors
MAX_SMALL_BODY_BYTES = 64 * 1024
_LATER_TEXT = "this teacher is leaving: ask another one"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the metadata say besides inputs and outputs."""

    name: str
    model_hash: str
    classes: int | None
    parameters: oip.Parameters


class Service:
    """Answers requests about one model. Called on the server's thread; answers of the model come from its own."""

    def __init__(
        self, identity: Identity, engine: Engine, clock: Clock, *, token: str | None, max_body_bytes: int
    ) -> None:
        self.identity = identity
        self.engine = engine
        #: asked to leave: it is not ready, though it still answers
        self.leaving = False
        #: it answers no new requests any more
        self.refusing = False
        #: of connections, for the metrics
        self.connections: Callable[[], int] = lambda: 0
        self._clock = clock
        self._token = token
        self._max_body_bytes = max_body_bytes
        self._reader = QuestionReader(engine.serving, engine.outputs)
        model = f"/v2/models/{identity.name}"
        getters: dict[str, Callable[[], Answer]] = {
            "/v2": self._server_metadata,
            "/v2/health/live": lambda: _json({"live": True}),
            "/v2/health/ready": self._ready,
            "/v2/models/stats": self._stats,
            "/metrics": self._metrics,
        }
        for prefix in (model, f"{model}/versions/{VERSION}"):
            getters[prefix] = lambda: _json_bytes(oip.encode(self.metadata()))
            getters[f"{prefix}/ready"] = self._ready
            getters[f"{prefix}/stats"] = self._stats
        self._getters = getters
        self._infer_paths = {f"{model}/infer", f"{model}/versions/{VERSION}/infer"}

    def metadata(self) -> oip.ModelMetadata:
        """As GET /v2/models/<name> says."""
        identity = self.identity
        parameters = {
            **identity.parameters,
            oip.MODEL_HASH: identity.model_hash,
            "classes": identity.classes,
            "rate": self.engine.stats.rate,
        }
        inputs = tuple(spec.tensor_spec for spec in self.engine.serving.inputs)
        return oip.ModelMetadata(identity.name, inputs, self.engine.outputs, (VERSION,), PLATFORM, parameters)

    def check(self, head: Head) -> None:
        """Refuse a request for what its head says, before its body comes. Raises HttpError."""
        path = _plain(head.path)
        if not path.startswith("/v2/health/") and not self._allowed(head):
            raise HttpError(401, "this teacher asks for a token: send Authorization: Bearer ...")
        infers = path in self._infer_paths
        if not infers and path not in self._getters:
            raise HttpError(404, self._unknown(path))
        if head.method != ("POST" if infers else "GET"):
            raise HttpError(405, f"{path} takes {'POST' if infers else 'GET'}, not {head.method}")
        limit = self._max_body_bytes if infers else MAX_SMALL_BODY_BYTES
        if head.body_bytes > limit:
            raise HttpError(413, f"the request has {head.body_bytes} bytes and {limit} are allowed", closes=True)
        if infers and self.refusing:
            raise HttpError(503, _LATER_TEXT, closes=True)

    def handle(self, head: Head, body: memoryview, done: Callable[[Answer], None]) -> Answer | Job:
        """Answer a request that was checked, or give it to the model: `done` is called with its answer."""
        path = _plain(head.path)
        if path not in self._infer_paths:
            return self._getters[path]()
        try:
            question = self._reader.read(body, head.json_bytes)
        except ProtocolError as error:
            return error_answer(400, str(error))
        job = self._job(question, done)
        self.engine.put(job)
        return job

    # ---- the model -----------------------------------------------------------------------------------------------

    def _job(self, question: Question, done: Callable[[Answer], None]) -> Job:
        def finished(job: Job, outcome: Outputs | Exception) -> None:
            done(self._written(question, job, outcome))

        return Job(question.arrays, question.rows, question.wanted, self._clock.monotonic_s(), finished)

    def _written(self, question: Question, job: Job, outcome: Outputs | Exception) -> Answer:
        if isinstance(outcome, ModelError):
            return error_answer(500, str(outcome))
        if isinstance(outcome, Exception):
            return error_answer(500, f"the teacher failed: {type(outcome).__name__}; its log says why")
        if job.cancelled:
            return error_answer(503, "nobody waits for this answer")
        parameters = {
            oip.MODEL_HASH: self.identity.model_hash,
            "queue_s": round(job.began_s - job.arrived_s, 6),
            "infer_s": round(self._clock.monotonic_s() - job.began_s, 6),
        }
        return write_answer(self.identity.name, VERSION, question.id, question.wanted, outcome, parameters)

    # ---- the rest ------------------------------------------------------------------------------------------------

    def _allowed(self, head: Head) -> bool:
        return self._token is None or (head.token is not None and same(head.token, self._token))

    def _unknown(self, path: str) -> str:
        parts = path.split("/")
        if parts[1:3] == ["v2", "models"] and len(parts) > 3 and parts[3] != self.identity.name:
            return f"there is no model {parts[3][:100]!r} here, only {self.identity.name!r}"
        if len(parts) > 5 and parts[4] == "versions" and parts[5] != VERSION:
            return f"model {self.identity.name!r} has only the version {VERSION}"
        return f"there is nothing at {path[:200]!r}"

    def _server_metadata(self) -> Answer:
        version = str(self.identity.parameters.get("edl", ""))
        return _json_bytes(oip.encode(oip.ServerMetadata(SERVER, version, EXTENSIONS, (self.identity.name,))))

    def _ready(self) -> Answer:
        return error_answer(503, _LATER_TEXT) if self.leaving else _json({"name": self.identity.name, "ready": True})

    def _stats(self) -> Answer:
        engine = self.engine
        return _json({"model_stats": [statistics(self.metadata(), engine.stats, engine.queue_length)]})

    def _metrics(self) -> Answer:
        engine = self.engine
        text = metrics(self.metadata(), engine.stats, engine.queue_length, self.connections())
        return Answer(200, (text.encode(),), CONTENT_TYPE)


def error_answer(status: int, text: str) -> Answer:
    return Answer(status, (oip.encode(oip.ErrorAnswer(text)),))


def _json(value: Any) -> Answer:
    return _json_bytes(msgspec.json.encode(value))


def _json_bytes(text: bytes) -> Answer:
    return Answer(200, (text,))


def _plain(path: str) -> str:
    try:
        return unquote(urlsplit(path).path).rstrip("/") or "/"
    except ValueError:  # such as a bracket without its end
        return "/"
