"""Submitting a job that has failed or was stopped again, under its name: it goes on from its checkpoint.

Invariant: in one transaction the records of the former run go and the spec is new, so no cut loses the job or mixes
two runs. Events stay: they are the history of the name.
"""

from collections.abc import Callable, Mapping

import msgspec

from edl_collective.coord.errors import NotEmpty, NotFound, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import JobSpec, Phase
from edl_collective.coord.store import Delete, Op, Set, Store, Versioned
from jobserver.api_models import ApiError, Json
from jobserver.edits import again
from jobserver.forget import first_alive, read_tree
from jobserver.snapshot import Job, Snapshot
from jobserver.versions import check_version, version_text

ATTEMPTS = 5
#: how a spec is written to its path, which that brings to a version
Write = Callable[[str, JobSpec, int], bytes]


def changed(name: str, version: int, spec: JobSpec) -> Json:
    """What a change of a job answers."""
    return {"job": name, "version": version_text(version, spec), "spec": msgspec.to_builtins(spec)}


def retry(
    store: Store,
    paths: Paths,
    name: str,
    look: Callable[[str], tuple[Job, Snapshot]],
    write: Write,
    if_match: str | None,
    now_s: float,
) -> Json:
    """`look`: the newest of a job; `now_s`: wall time. Raises ApiError, 409 unless the job failed or was stopped."""
    path = paths.spec(name)
    for _ in range(ATTEMPTS):
        try:
            tree = read_tree(store, paths.job(name))
            job, snapshot = look(name)  # after the tree: if they differ, the transaction fails
            check_version(job.spec, if_match)
            _check_ended(job)
            _check_nobody_lives(tree, paths, snapshot, name)
            spec = again(job.spec.value, now_s)
            store.transact(_renewed(tree, paths, name, write(path, spec, tree[path].version + 1)))
        except (VersionConflict, NotFound, NotEmpty):
            continue
        return changed(name, tree[path].version + 1, spec)
    raise ApiError(409, f"job {name} is being changed by others: try again")


def _check_ended(job: Job) -> None:
    phase = job.status.value.phase if job.status else Phase.PENDING
    if phase is Phase.SUCCEEDED:
        raise ApiError(409, f"job {job.name} has succeeded: there is nothing to retry")
    if not phase.terminal:
        raise ApiError(409, f"job {job.name} has not ended, it is {phase}: only a failed or stopped job is retried")


def _check_nobody_lives(tree: Mapping[str, Versioned], paths: Paths, snapshot: Snapshot, name: str) -> None:
    alive = first_alive(tree, paths, snapshot)
    if alive is not None:
        text = f"worker {alive.worker} of job {name} has not ended on node {alive.node}: try again when it has"
        raise ApiError(409, text)


def _renewed(tree: Mapping[str, Versioned], paths: Paths, name: str, spec: bytes) -> list[Op]:
    stays = {paths.job(name), paths.spec(name), paths.events(name)}
    old = [path for path in tree if path not in stays and not path.startswith(paths.events(name) + "/")]
    return [
        *(Delete(path, tree[path].version) for path in old),
        Set(paths.spec(name), spec, tree[paths.spec(name)].version),
    ]
