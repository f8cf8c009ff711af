"""Teachers of another make (Triton, OpenVINO Model Server, KServe): listed as long as they answer.

They do not know ZooKeeper, so this process holds the session for them and asks for an inference of zeros every few
seconds. What it cannot see: a server that freezes between two checks stays listed until the next one.
"""

import logging
import threading
from dataclasses import dataclass

import numpy as np

from distill import oip
from distill.errors import ConfigError, DistillError, Mismatch
from distill.records import TeacherRecord
from distill.teacher_client import TeacherClient

logger = logging.getLogger(__name__)

#: sizes that metadata leave open, besides the batch, are this in the check
OPEN_SIZE = 16


@dataclass(frozen=True, slots=True)
class Foreign:
    """A server to list."""

    teacher: str
    url: str
    model: str
    rate: float | None
    started_at: float


class Prober:
    """Checks a server by inference; `record` is what should be listed now."""

    def __init__(self, client: TeacherClient, foreign: Foreign) -> None:
        self._client = client
        self._foreign = foreign
        self._lock = threading.Lock()
        self._record: TeacherRecord | None = None
        self.problem: str | None = None

    def record(self) -> TeacherRecord | None:
        with self._lock:
            return self._record

    def check(self) -> str | None:
        """Ask once; why the server may not be listed, if so."""
        record, problem = None, None
        try:
            record = self._asked()
        except DistillError as error:
            problem = str(error)
        with self._lock:
            self._record = record
        if problem != self.problem:
            logger.warning("%s: %s", self._foreign.url, problem or "it answers again")
            self.problem = problem
        return problem

    def _asked(self) -> TeacherRecord:
        foreign = self._foreign
        metadata = self._client.metadata(foreign.model)
        inputs = {spec.name: zeros(spec) for spec in metadata.inputs}
        names = [spec.name for spec in metadata.outputs]
        if not inputs or not names:
            raise Mismatch(f"model {foreign.model!r} of {foreign.url} says nothing of its inputs or outputs")
        outputs, answer = self._client.infer(foreign.model, inputs, names)
        missing = [name for name in names if name not in outputs]
        if missing:
            raise Mismatch(f"model {foreign.model!r} of {foreign.url} did not answer its output {missing[0]!r}")
        classes = metadata.parameters.get("classes")
        return TeacherRecord(
            teacher=foreign.teacher,
            url=foreign.url,
            model=foreign.model,
            model_hash=answer.model_hash,
            inputs=metadata.inputs,
            outputs=metadata.outputs,
            classes=classes if isinstance(classes, int) else _classes(metadata.outputs[0]),
            rate=foreign.rate,
            started_at=foreign.started_at,
        )


def zeros(spec: oip.TensorSpec) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """One sample of zeros. Raises Mismatch for an input that is no batch of numbers."""
    if spec.datatype not in oip.DATATYPES:
        raise Mismatch(f"input {spec.name!r} is {spec.datatype}: teachers take numbers")
    shape = tuple(OPEN_SIZE if size < 0 else size for size in spec.shape[1:])
    first = spec.shape[0] if spec.shape and spec.shape[0] > 0 else 1
    return np.zeros((first, *shape), oip.DATATYPES[spec.datatype][1])


def _classes(output: oip.TensorSpec) -> int | None:
    return output.shape[1] if len(output.shape) == 2 and output.shape[1] > 0 else None


def only_model(client: TeacherClient, url: str) -> str:
    """The name of the server's only model. Raises ConfigError when it does not say, or has several."""
    names = client.models()
    if len(names) != 1:
        raise ConfigError(
            f"--model is missing: {url} {f'serves {list(names)}' if names else 'does not say what it serves'}"
        )
    return names[0]
