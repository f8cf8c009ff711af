"""What a stream tells of, each as named parts of which only those that changed are told again. [pure]

Invariant: whoever takes `everything` and then each answer of `look` in turn has what `look` saw last. A topic that is
looked at twice without a change in between says nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from jobserver.api_models import ApiError, Json, event_row, job_detail, job_rows, node_rows
from jobserver.service_rows import all_services, find_service
from jobserver.snapshot import Snapshot, StoredEvent

Parts = Mapping[str, Any]
#: a stream tells the events of a job in messages of at most this many
EVENTS_IN_MESSAGE = 100


@dataclass(slots=True)
class Topic:
    """Parts by name, as `show` makes them of a snapshot; for one thread at a time."""

    name: str
    show: Callable[[Snapshot], Parts]
    #: equal for two snapshots whose parts are equal; None: that costs as much as to show them
    basis: Callable[[Snapshot], object] | None = None
    _parts: Parts = field(default_factory=dict)
    _seen: object = None
    _everything: bytes | None = None

    def look(self, snapshot: Snapshot) -> bytes | None:
        """The message that tells what is not as it was; None if everything is."""
        if self.basis is not None:
            basis = self.basis(snapshot)
            if self._seen is not None and basis == self._seen:
                return None
            self._seen = basis
        old, self._parts = self._parts, self.show(snapshot)
        new = {name: part for name, part in self._parts.items() if name not in old or old[name] != part}
        gone = [name for name in old if name not in self._parts]
        if not new and not gone:
            return None
        self._everything = None
        return message("change", {"topic": self.name, "full": False, "parts": new, "gone": gone})

    def everything(self) -> bytes:
        """The message that tells all parts, whatever was known."""
        if self._everything is None:
            value = {"topic": self.name, "full": True, "parts": self._parts, "gone": []}
            self._everything = message("change", value)
        return self._everything


def message(event: str, value: object, number: int | None = None) -> bytes:
    """A server-sent event; JSON has no line breaks. `number` is its id, from which a client goes on."""
    head = f"event: {event}\n" if number is None else f"event: {event}\nid: {number}\n"
    return head.encode() + b"data: " + msgspec.json.encode(value) + b"\n\n"


def jobs_topic() -> Topic:
    return Topic("jobs", lambda snapshot: {row["job"]: row for row in job_rows(snapshot)["jobs"]})


def nodes_topic() -> Topic:
    return Topic("nodes", lambda snapshot: {row["node"]: row for row in node_rows(snapshot)["nodes"]}, _nodes_basis)


def services_topic() -> Topic:
    return Topic("services", lambda snapshot: {row["service"]: row for row in all_services(snapshot)})


def job_topic(name: str, now_s: Callable[[], float]) -> Topic:
    """The parts are the fields of the job's detail; of a job that is not there, `missing` says why.

    Nobody is told its environment, which may hold secrets: whoever may only read follows streams, too. Its goodput,
    which changes with the time alone (`now_s`, wall time), is told again with anything else.
    """
    shown: Parts = {}

    def show(snapshot: Snapshot) -> Parts:
        nonlocal shown
        found = _job_parts(name, snapshot, now_s())
        if {**found, "goodput": None} != {**shown, "goodput": None}:
            shown = found
        return shown

    return Topic(f"job/{name}", show)


def _job_parts(name: str, snapshot: Snapshot, now_s: float) -> Parts:
    job = snapshot.jobs.get(name)
    if job is not None:
        detail = job_detail(job, snapshot, now_s, events=0)
        del detail["events"]
        return {**detail, "spec": {field: value for field, value in detail["spec"].items() if field != "env"}}
    if name in snapshot.unreadable_jobs:
        return {"missing": f"job {name} is left alone: its records cannot be read"}
    return {"missing": f"there is no job {name}"}


def service_topic(name: str) -> Topic:
    """The parts are the fields of the service's detail, or `missing`."""

    def show(snapshot: Snapshot) -> Parts:
        try:
            return find_service(snapshot, name)
        except ApiError as error:
            return {"missing": error.error}

    return Topic(f"service/{name}", show)


def _nodes_basis(snapshot: Snapshot) -> object:
    """What nodes and their workers are made of; reports of progress, which come all the time, change none of it."""
    plans = {name: job.plan.value for name, job in snapshot.jobs.items() if job.plan is not None}
    return snapshot.nodes, {name: at.value for name, at in snapshot.drains.items()}, plans


@dataclass(slots=True)
class JobEvents:
    """The events of one job, told once each; those of another job of its name begin anew."""

    name: str
    _submitted_at: float | None = None
    _rows: Sequence[Json] = ()
    _newest: int = -1
    _stored: object = None

    def look(self, snapshot: Snapshot) -> list[bytes]:
        """Messages with the events that are new since the last look."""
        job = snapshot.jobs.get(self.name)
        if job is None:
            self._submitted_at, self._rows, self._newest, self._stored = None, (), -1, None
            return []
        if job.events == self._stored:
            return []
        anew = job.spec.value.submitted_at != self._submitted_at
        before = -1 if anew else self._newest
        self._submitted_at, self._stored = job.spec.value.submitted_at, job.events
        self._rows = [event_row(event) for event in job.events]
        self._newest = max((row["number"] for row in self._rows), default=before)
        return self._messages(before, anew)

    def after(self, number: int) -> list[bytes]:
        """Messages with all events that have a higher number; with every event if there is none of that number."""
        known = number <= self._newest
        return self._messages(number if known else -1, not known or number < 0)

    def _messages(self, after: int, anew: bool) -> list[bytes]:
        rows = [row for row in self._rows if row["number"] > after]
        starts = range(0, len(rows), EVENTS_IN_MESSAGE)
        return [self._message(rows[at : at + EVENTS_IN_MESSAGE], anew and at == 0) for at in starts]

    def _message(self, rows: list[Json], anew: bool) -> bytes:
        return message("events", {"job": self.name, "anew": anew, "events": rows}, rows[-1]["number"])


def cluster_events_topic() -> Topic:
    """Events of the cluster by their number."""
    return Topic(
        "events",
        lambda snapshot: {str(row["number"]): row for row in map(event_row, snapshot.events)},
        lambda snapshot: snapshot.events,
    )


def event_page(events: Sequence[StoredEvent], after: int | None, before: int | None, limit: int) -> Json:
    """Up to `limit` events, oldest first, and the number to go on from, None at the end.

    Forward from `after` (or the beginning); backward from `before` if only that is given. `next` is the `after`, or
    the `before`, of the next page.
    """
    rows = [event_row(event) for event in events]
    backward = before is not None and after is None
    low = -1 if after is None else after
    rows = [row for row in rows if row["number"] > low and (before is None or row["number"] < before)]
    page = rows[-limit:] if backward else rows[:limit]
    following = page[0 if backward else -1]["number"] if len(page) < len(rows) else None
    return {"events": page, "next": following}
