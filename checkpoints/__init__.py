"""Checkpoints of a training job on any file system: committed by a manifest, verified by checksums, newest valid wins.

Useful alone, with plain PyTorch: it imports nothing else of this project. Importing the package loads neither torch nor
a file system client; each public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoints.errors import (
        CheckpointDamaged,
        CheckpointError,
        CheckpointExists,
        CheckpointLeaseLost,
        CheckpointMismatch,
        CheckpointNotFound,
        CheckpointPermission,
        CheckpointQuota,
        CheckpointTimeout,
        CheckpointUnavailable,
        CheckpointUnsupported,
        InvalidStatus,
        StateNotSupported,
    )
    from checkpoints.fleet import HDFSClient, LocalFS
    from checkpoints.layout import DEFAULT_FOLDER
    from checkpoints.loader import LoadedCheckpoint, list_checkpoints, load_checkpoint, verify
    from checkpoints.manager import CheckpointManager, SaveResult
    from checkpoints.policy import Every
    from checkpoints.progress import Progress
    from checkpoints.retention import Collect, Condition, Keep
    from checkpoints.rng import RngState
    from checkpoints.saver import preflight, save_checkpoint
    from checkpoints.store import CheckpointInfo, Skipped
    from checkpoints.train_status import TrainStatus
    from checkpoints.upkeep import collect, pin, unpin

_HOME = {
    "CheckpointDamaged": "errors",
    "CheckpointError": "errors",
    "CheckpointExists": "errors",
    "CheckpointInfo": "store",
    "CheckpointLeaseLost": "errors",
    "CheckpointManager": "manager",
    "CheckpointMismatch": "errors",
    "CheckpointNotFound": "errors",
    "CheckpointPermission": "errors",
    "CheckpointQuota": "errors",
    "CheckpointTimeout": "errors",
    "CheckpointUnavailable": "errors",
    "CheckpointUnsupported": "errors",
    "Collect": "retention",
    "Condition": "retention",
    "DEFAULT_FOLDER": "layout",
    "Every": "policy",
    "HDFSClient": "fleet",
    "InvalidStatus": "errors",
    "Keep": "retention",
    "LoadedCheckpoint": "loader",
    "LocalFS": "fleet",
    "Progress": "progress",
    "RngState": "rng",
    "SaveResult": "manager",
    "Skipped": "store",
    "StateNotSupported": "errors",
    "TrainStatus": "train_status",
    "collect": "upkeep",
    "list_checkpoints": "loader",
    "load_checkpoint": "loader",
    "pin": "upkeep",
    "preflight": "saver",
    "save_checkpoint": "saver",
    "unpin": "upkeep",
    "verify": "loader",
}

__all__ = [
    "DEFAULT_FOLDER",
    "CheckpointDamaged",
    "CheckpointError",
    "CheckpointExists",
    "CheckpointInfo",
    "CheckpointLeaseLost",
    "CheckpointManager",
    "CheckpointMismatch",
    "CheckpointNotFound",
    "CheckpointPermission",
    "CheckpointQuota",
    "CheckpointTimeout",
    "CheckpointUnavailable",
    "CheckpointUnsupported",
    "Collect",
    "Condition",
    "Every",
    "HDFSClient",
    "InvalidStatus",
    "Keep",
    "LoadedCheckpoint",
    "LocalFS",
    "Progress",
    "RngState",
    "SaveResult",
    "Skipped",
    "StateNotSupported",
    "TrainStatus",
    "collect",
    "list_checkpoints",
    "load_checkpoint",
    "pin",
    "preflight",
    "save_checkpoint",
    "unpin",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `import checkpoints` stays free of heavy packages."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'checkpoints' has no attribute {name!r}")
    value = getattr(import_module(f"checkpoints.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
