"""Making sure that the job of a JobClient's command line exists.

Every node of a job may say so; the first one creates it and the stored spec stands. It changes no spec: how many
workers the job has over time is for the JobServer to fill in.
"""

import logging

from msgspec.structs import replace

from edl_collective.coord.errors import Exists
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import JobSpec, JobStatus, decode
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.store import Store

logger = logging.getLogger(__name__)

#: what a JobClient's command line says of a job; the other fields are the JobServer's to fill or a user's to change
_COMPARED = ("command", "min_np", "package_hook", "pod_path", "work_dir", "checkpoint_url", "kind")


def ensure_job(store: Store, paths: Paths, signer: SpecSigner, spec: JobSpec, now: float) -> JobSpec:
    """Create the job unless it exists; returns the spec that stands. `now`: wall time.

    Raises Disconnected, RecordError if what stands is not a spec, UnsignedSpec if nobody with the key wrote it.
    """
    path = paths.spec(spec.job)
    try:
        store.create(path, signer.sign(path, replace(spec, submitted_at=now)))
    except Exists:
        pass
    else:
        logger.info("job %s is submitted: %s", spec.job, " ".join(spec.command))
        return spec
    found = store.get(path)
    if found is None:  # removed in this moment: say it again
        return ensure_job(store, paths, signer, spec, now)
    stored = decode(found.data, JobSpec, path)
    signer.check(path, found.data)
    different = [name for name in _COMPARED if getattr(stored, name) != getattr(spec, name)]
    for name in different:
        logger.warning(
            "job %s exists with %s = %r, not %r: the stored one stands; another --job-id makes another job",
            *(spec.job, name, getattr(stored, name), getattr(spec, name)),
        )
    if not different:
        logger.info("job %s exists already", spec.job)
    status = store.get(paths.status(spec.job))
    if status is not None and (phase := decode(status.data, JobStatus, paths.status(spec.job)).phase).terminal:
        logger.warning("job %s has %s and will not run again; another --job-id makes another job", spec.job, phase)
    return stored
