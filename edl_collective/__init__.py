"""The training library of EDL: a PyTorch script that keeps training while workers come and go.

Lazy: importing edl_collective loads no torch and no Horovod; the first use of a public name does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edl_collective.audit import StepLog
    from edl_collective.batches import ElasticBatchSampler, RecordingDataset
    from edl_collective.collectives import sum_across
    from edl_collective.local import checkpoint_url, device, init, local_rank, rank, size
    from edl_collective.run_loop import run
    from edl_collective.scaling import CosineLR, LinearWarmup, OneCycleLR, PerWorkerBatch, PiecewiseLR, TotalBatch
    from edl_collective.state import State

_HOME = {
    "CosineLR": "scaling",
    "ElasticBatchSampler": "batches",
    "LinearWarmup": "scaling",
    "OneCycleLR": "scaling",
    "PerWorkerBatch": "scaling",
    "PiecewiseLR": "scaling",
    "RecordingDataset": "batches",
    "State": "state",
    "StepLog": "audit",
    "TotalBatch": "scaling",
    "checkpoint_url": "local",
    "device": "local",
    "init": "local",
    "local_rank": "local",
    "rank": "local",
    "run": "run_loop",
    "size": "local",
    "sum_across": "collectives",
}

__all__ = [
    "CosineLR",
    "ElasticBatchSampler",
    "LinearWarmup",
    "OneCycleLR",
    "PerWorkerBatch",
    "PiecewiseLR",
    "RecordingDataset",
    "State",
    "StepLog",
    "TotalBatch",
    "checkpoint_url",
    "device",
    "init",
    "local_rank",
    "rank",
    "run",
    "size",
    "sum_across",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'edl_collective' has no attribute {name!r}")
    value = getattr(import_module(f"edl_collective.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
