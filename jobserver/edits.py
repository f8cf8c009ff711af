"""What a request may change in the spec of a job that has not ended. [pure]

Invariant: what comes out is a valid spec of the same job; the work itself (command, environment, checkpoint, kind,
schedule) never changes under running workers.
"""

from collections.abc import Callable

import msgspec

from edl_collective.coord.records import JobKind, JobSpec
from jobserver.api_models import ApiError, convert_spec, parse_body

Edit = Callable[[JobSpec], JobSpec]

#: fields of a spec that may change while the job waits or runs
CHANGEABLE = ("np", "min_np", "max_np", "priority", "spares")
#: horovodrun was started with these
_FIXED_OF_EXTERNAL = ("min_np", "max_np")
MAX_REASON = 200


def parse_edit(body: bytes) -> Edit:
    """The changes of a PATCH: any of CHANGEABLE; np null gives the number back to the schedule. Raises ApiError."""
    values = parse_body(body)
    if not values:
        raise ApiError(422, f"nothing is to change: name at least one of {', '.join(CHANGEABLE)}")
    for name in values:
        if name in JobSpec.__struct_fields__ and name not in CHANGEABLE:
            text = f"{name} cannot change while a job lives, only {', '.join(CHANGEABLE)} can: submit another job"
            raise ApiError(422, text, name)
        if name not in CHANGEABLE:
            raise ApiError(422, f"a job has no field {name!r} that can change; {', '.join(CHANGEABLE)} can", name)

    def edit(spec: JobSpec) -> JobSpec:
        fixed = next((name for name in _FIXED_OF_EXTERNAL if name in values), None)
        if fixed is not None and spec.kind is JobKind.EXTERNAL:
            text = f"{fixed} of external job {spec.job} cannot change: its horovodrun was started with it"
            raise ApiError(422, text, fixed)
        return convert_spec({**msgspec.to_builtins(spec), **values})

    return edit


def parse_stop(body: bytes) -> Edit:
    """To be stopped, for the reason that the body may give; the first reason stays. Raises ApiError."""
    values = parse_body(body) if body else {}
    reason = values.pop("reason", "")
    for name in values:
        raise ApiError(422, f"a stop has no field {name!r}; it has reason", name)
    if not isinstance(reason, str) or len(reason) > MAX_REASON or not (reason == "" or reason.isprintable()):
        raise ApiError(422, f"reason must be a line of at most {MAX_REASON} characters", "reason")

    def stop(spec: JobSpec) -> JobSpec:
        return spec if spec.stopped else msgspec.structs.replace(spec, stopped=True, stop_reason=reason.strip())

    return stop


def again(spec: JobSpec, now_s: float) -> JobSpec:
    """The same job, submitted at `now_s` (wall time)."""
    return msgspec.structs.replace(spec, stopped=False, stop_reason="", submitted_at=now_s)
