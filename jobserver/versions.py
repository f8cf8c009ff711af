"""Which version of a job's spec somebody has seen, as text that HTTP calls an entity tag. [pure]

Invariant: two specs that a job of one name ever had do not share a version, not even when the name was given again.
"""

from edl_collective.coord.records import JobSpec
from jobserver.api_models import ApiError
from jobserver.snapshot import At


def version_of(spec: At[JobSpec]) -> str:
    """Of the spec as it lies in the store: how often it was written, and when the job was submitted."""
    return version_text(spec.version, spec.value)


def version_text(version: int, spec: JobSpec) -> str:
    return f"{version}-{int(spec.submitted_at * 1000)}"


def entity_tag(version: str) -> str:
    """For the headers ETag and If-Match."""
    return f'"{version}"'


def check_version(spec: At[JobSpec], if_match: str | None) -> None:
    """`if_match`: the header If-Match, a list of entity tags; None and * hold for every version.

    Raises ApiError 412 if the spec is at none of them.
    """
    if if_match is None:
        return
    seen = [tag.strip() for tag in if_match.split(",")]
    present = version_of(spec)
    if "*" not in seen and entity_tag(present) not in seen:
        text = f"job {spec.value.job} was changed meanwhile: it is at version {present}; look at it again, then decide"
        raise ApiError(412, text)
