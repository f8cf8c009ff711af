"""What the HTTP interface says and accepts, as plain JSON values. [pure]

Invariant: a body that is not understood becomes an ApiError with one sentence and, where it is known, the field.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from edl_collective.coord.job_spec import TIMEOUTS
from edl_collective.coord.records import (
    DrainRecord,
    Event,
    JobKind,
    JobSpec,
    NodeRecord,
    Phase,
    WorkerRecord,
    WorkerState,
    decode,
)
from jobserver.changing import Changing, fill_in
from jobserver.goodput import goodput
from jobserver.job_state import is_over
from jobserver.schedule import check_schedule
from jobserver.snapshot import Job, Snapshot, StoredEvent

Json = dict[str, Any]

MAX_BODY_BYTES = 64 * 1024
#: of one job; no cluster has so many slots
MAX_WORKERS = 1_000_000
_SPEC_FIELDS = frozenset(JobSpec.__struct_fields__) - {"schema", "submitted_at", "stopped", "stop_reason"}
#: what may differ between two submissions of the same job
_NOT_COMPARED = frozenset({"schema", "submitted_at", "stopped", "stop_reason"})


class ApiError(Exception):
    """Raised when a request is refused: HTTP status, one sentence, and the field that is to blame."""

    def __init__(self, status: int, error: str, field: str | None = None) -> None:
        super().__init__(status, error, field)
        self.status = status
        self.error = error
        self.field = field

    def __str__(self) -> str:
        return self.error


def parse_body(body: bytes) -> Json:
    """The JSON object in `body`. Raises ApiError 400."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    return value


def parse_spec(body: bytes, changing: Changing | None, now_s: float) -> JobSpec:
    """The job to submit. Raises ApiError."""
    values = parse_body(body)
    for name in values:
        if name not in _SPEC_FIELDS:
            raise ApiError(422, f"a job has no field {name!r}; it has {', '.join(sorted(_SPEC_FIELDS))}", name)
    for name in ("job", "command"):
        if name not in values:
            raise ApiError(422, f"{name} is missing", name)
    if "max_np" not in values:  # room for what the job says, else for what the changing script describes
        least = max((n for n in (values.get("min_np"), values.get("np")) if isinstance(n, int)), default=1)
        values = {**values, "max_np": max(least, changing.max_np if changing else 1)}
    return fill_in(convert_spec({**values, "submitted_at": now_s}), changing)


def convert_spec(values: Mapping[str, Any]) -> JobSpec:
    """`values` as a valid spec. Raises ApiError 422 with the sentence of the record that refuses them."""
    try:
        spec = msgspec.convert(values, JobSpec)
    except msgspec.ValidationError as error:
        text, field = _explain(str(error))
        raise ApiError(422, text, field or _named(text)) from error
    try:
        check_schedule(spec)
    except ValueError as error:
        raise ApiError(422, str(error), "schedule") from error
    for name in TIMEOUTS:
        if not math.isfinite(getattr(spec, name)):
            raise ApiError(422, f"{name} must be a finite number of seconds", name)
    for name in ("max_np", "spares"):
        if getattr(spec, name) > MAX_WORKERS:
            raise ApiError(422, f"{name} is {getattr(spec, name)}: it must be at most {MAX_WORKERS}", name)
    for name in ("max_restarts", "max_failures"):
        if getattr(spec, name) < 0:
            raise ApiError(422, f"{name} is {getattr(spec, name)}: it must be at least 0", name)
    return spec


def parse_np(body: bytes, spec: JobSpec) -> JobSpec:
    """`spec` with the np of a scale request; null gives the number back to the schedule. Raises ApiError."""
    values = parse_body(body)
    if set(values) != {"np"}:
        raise ApiError(422, 'scale needs exactly one field: {"np": number, or null for the schedule}', "np")
    return convert_spec({**msgspec.to_builtins(spec), "np": values["np"]})


def parse_drain(body: bytes, node: str, now_s: float) -> tuple[DrainRecord, bool]:
    """The order to drain `node`, and whether it may be unknown; an empty body gives no deadline. Raises ApiError."""
    values = parse_body(body) if body else {}
    absent = values.pop("absent", False)
    if not isinstance(absent, bool):
        raise ApiError(422, f"absent is {absent!r}: it must be true or false", "absent")
    for name in values:
        if name != "deadline_s":
            raise ApiError(422, f"a drain has no field {name!r}; it has deadline_s and absent", name)
    try:
        return msgspec.convert({**values, "node": node, "asked_at": now_s}, DrainRecord), absent
    except msgspec.ValidationError as error:
        text, _ = _explain(str(error))
        raise ApiError(422, text, "deadline_s") from error


def differences(old: JobSpec, new: JobSpec) -> list[str]:
    """Fields that make `new` another job than `old`. A new spec without np accepts whatever was scaled to since."""
    names = [n for n in JobSpec.__struct_fields__ if n not in _NOT_COMPARED and getattr(old, n) != getattr(new, n)]
    return [n for n in names if not (n == "np" and new.np is None)]


def queue(snapshot: Snapshot) -> dict[str, int]:
    """The jobs that wait for their minimum, numbered from 1 in the order in which they are served."""
    phases = {name: job.status.value.phase if job.status else Phase.PENDING for name, job in snapshot.jobs.items()}
    waiting = [job for name, job in snapshot.jobs.items() if phases[name] in (Phase.PENDING, Phase.HOLDING)]
    return {job.name: number for number, job in enumerate(sorted(waiting, key=lambda job: job.turn), 1)}


def job_rows(snapshot: Snapshot) -> Json:
    """All jobs, the oldest first."""
    places = queue(snapshot)
    rows = [job_row(job, places.get(job.name)) for job in snapshot.jobs.values()]
    return {"jobs": sorted(rows, key=lambda row: (row["submitted_at"], row["job"]))}


def job_row(job: Job, place: int | None = None) -> Json:
    """One line of the list of jobs. `place`: in the queue, None if it does not wait."""
    spec, progress = job.spec.value, job.progress
    status = job.status.value if job.status else None
    return {
        "job": spec.job,
        "kind": spec.kind.value,
        "phase": status.phase.value if status else "pending",
        "reason": _reason(job),
        "workers": len(job.plan.value.workers) if job.plan else 0,
        "spares": len(job.plan.value.spares) if job.plan else 0,
        "world_size": serving(job) if spec.service is not None else progress.world_size if progress else 0,
        "min_np": spec.min_np,
        "max_np": spec.max_np,
        "np": spec.np,
        "priority": spec.priority,
        "queue": place,
        "epoch": progress.epoch if progress else 0,
        "epochs_total": progress.epochs_total if progress else None,
        "step": progress.step if progress else 0,
        "samples_per_s": progress.samples_per_s if progress else None,
        "loss": progress.loss if progress else None,
        "accuracy": progress.accuracy if progress else None,
        "teacher_wait_s_per_step": progress.teacher_wait_s_per_step if progress else None,
        "submitted_at": spec.submitted_at,
    }


def _reason(job: Job) -> str:
    """Why it is in its phase and, while it trains, what is the matter with its training."""
    if job.status is None:
        return "no JobServer has looked at it yet"
    status = job.status.value
    message = job.progress.message if job.progress and not status.phase.terminal else ""
    return f"{status.reason}; {message}" if message else status.reason


def serving(job: Job) -> int:
    """Teachers of the job that are listed and do not drain: they have no world."""
    return sum(teacher.job == job.name and not teacher.draining for teacher in job.fleet.teachers.values())


def job_detail(job: Job, snapshot: Snapshot, now_s: float, events: int = 20) -> Json:
    """Everything about one job at `now_s` (wall time), with its last `events` events."""
    return {
        **job_row(job, queue(snapshot).get(job.name)),
        "spec": msgspec.to_builtins(job.spec.value),
        "plan": msgspec.to_builtins(job.plan.value) if job.plan else None,
        "status": msgspec.to_builtins(job.status.value) if job.status else None,
        "progress": msgspec.to_builtins(job.progress) if job.progress else None,
        "goodput": goodput(job, now_s),
        "driver": msgspec.to_builtins(job.driver) if job.driver else None,
        "rendezvous": msgspec.to_builtins(job.rendezvous),
        "worker_records": [
            worker_row(at.value, snapshot) for _, at in sorted(job.workers.items(), key=lambda kv: _number(kv[0]))
        ],
        "events": [event_row(event) for event in job.events[-events:]] if events else [],
    }


def worker_row(record: WorkerRecord, snapshot: Snapshot) -> Json:
    """A worker; its state is "lost" when its node or JobClient went away before it was seen to end."""
    row: Json = msgspec.to_builtins(record)
    if record.state is not WorkerState.EXITED and is_over(record, snapshot):
        row["state"] = "lost"
    return row


def event_row(event: StoredEvent) -> Json:
    """An event with the number that orders it; one that cannot be read says so."""
    number = _number(event.name)
    try:
        row: Json = msgspec.to_builtins(decode(event.data, Event, event.name))
    except Exception as error:
        return {"number": number, "at": 0.0, "kind": "unreadable", "text": str(error), "fields": {}}
    return {"number": number, **row}


def node_rows(snapshot: Snapshot) -> Json:
    """All nodes, by name."""
    planned: dict[str, list[Json]] = {name: [] for name in snapshot.nodes}
    for job in snapshot.jobs.values():
        plan = job.plan.value if job.plan else None
        for worker in plan.everybody if plan else ():
            if worker.node in planned:
                row = {"job": job.name, "worker": worker.worker, "slot": worker.slot}
                planned[worker.node].append({**row, "spare": plan is not None and worker in plan.spares})
    return {"nodes": [_node_row(node, planned[name], snapshot) for name, node in sorted(snapshot.nodes.items())]}


def _node_row(node: NodeRecord, planned: list[Json], snapshot: Snapshot) -> Json:
    """A node with the workers and spares that are planned on it; `drain` is set while somebody drains it."""
    order = snapshot.drains.get(node.node)
    drain = (
        None
        if order is None or order.value.cordon
        else {"deadline_s": order.value.deadline_s, "asked_at": order.value.asked_at}
    )
    row: Json = msgspec.to_builtins(node)
    del row["proof"]
    return {**row, "drain": drain, "workers": sorted(planned, key=lambda row: row["slot"])}


def host_rows(job: Job, snapshot: Snapshot) -> list[Json]:
    """Slots by address, in the order of the plan, for horovodrun's host discovery."""
    counts: dict[str, int] = {}
    for worker in job.plan.value.workers if job.plan else ():
        node = snapshot.nodes.get(worker.node)
        if node is not None:
            counts[node.address] = counts.get(node.address, 0) + 1
    return [{"host": host, "slots": slots} for host, slots in counts.items()]


def pods(job: Job, snapshot: Snapshot) -> Json:
    """The predecessor's answer: a pod is a worker, the stage flag is the plan's revision."""
    rows = []
    for worker in job.plan.value.workers if job.plan else ():
        node, at = snapshot.nodes.get(worker.node), job.workers.get(worker.worker)
        gpu = node.gpus[worker.slot] if node and worker.slot < len(node.gpus) else worker.slot
        running = job.spec.value.kind is JobKind.EXTERNAL or (at is not None and not is_over(at.value, snapshot))
        address = node.address if node else ""
        row = {"pod_id": worker.worker, "running": running, "addr": address, "pod_port": node.port if node else 0}
        rows.append({**row, "trainer_ports": [], "gpus": [gpu]})
    return {"job_id": job.name, "pods": rows, "job_stage_flag": job.plan.value.revision if job.plan else -1}


def _number(name: str) -> int:
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else -1


def _explain(message: str) -> tuple[str, str | None]:
    """Text and field of a msgspec error such as "Expected `int`, got `str` - at `$.min_np`"."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message, re.DOTALL)
    if not found:
        return message, None
    text, field = found[1], found[2]
    return (f"{field}: {text[0].lower()}{text[1:]}" if field else text), field or None


def _named(text: str) -> str | None:
    first = text.split(" ", 1)[0]
    return first if first in _SPEC_FIELDS else "job" if "cannot name a job" in text else None
