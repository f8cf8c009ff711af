"""How long a worker may take from SIGTERM to SIGKILL. [pure]"""

from edl_collective.coord.records import JobKind, JobSpec

#: for what is stopped when the spec, and with it its time-out, is gone
DEFAULT_STOP_TIMEOUT_S = 10.0


def stop_timeout_s(spec: JobSpec | None, leave_by_s: float | None, now_s: float) -> float:
    """Workers have left by then, or will not; teachers leave on SIGTERM, so they are given the time of a leave.

    leave_by_s: monotonic time by which the node is to be empty, None if it need not be.
    """
    if spec is None:
        return DEFAULT_STOP_TIMEOUT_S
    if spec.kind is not JobKind.TEACHER:
        return spec.stop_timeout_s
    left_s = spec.leave_timeout_s if leave_by_s is None else leave_by_s - now_s
    return max(spec.stop_timeout_s, min(spec.leave_timeout_s, left_s))
