"""Every error of this package: one base, one-line leaves.

Invariant: an outage is never told as absence. `CheckpointNotFound` is raised only when the file system answered and
said so; whatever is unknown or unreachable is `CheckpointUnavailable`.
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of all errors of this package.

    Args:
        message: one sentence for a person, naming the knob to turn where there is one.
        url: the checkpoint URL or path concerned, empty if none.
        operation: the step that failed, such as "list" or "write", empty if none.
    """

    def __init__(self, message: str, *, url: str = "", operation: str = "") -> None:
        super().__init__(message)
        self.url = url
        self.operation = operation


class CheckpointNotFound(CheckpointError):
    """Raised when the file system answered and the file, folder or checkpoint number is not there."""


class CheckpointExists(CheckpointError):
    """Raised when a write-once name is already taken."""


class CheckpointPermission(CheckpointError):
    """Raised when the file system refuses the user."""


class CheckpointQuota(CheckpointError):
    """Raised when a quota is used up or the disk is full."""


class CheckpointUnavailable(CheckpointError):
    """Raised when the file system cannot be reached, is in safe mode, or failed in a way that may pass."""


class CheckpointTimeout(CheckpointUnavailable):
    """Raised when the file system did not answer in time."""


class CheckpointLeaseLost(CheckpointError):
    """Raised when a file that is being written was taken over or removed by somebody else; the save is over."""


class CheckpointUnsupported(CheckpointError):
    """Raised when no driver serves the URL, its package is missing, or the driver cannot do the operation."""


class CheckpointDamaged(CheckpointError):
    """Raised when checkpoints are there and none that was asked for passes its checks."""


class CheckpointMismatch(CheckpointError):
    """Raised when what a checkpoint holds does not fit the object it is to be loaded into."""


class StateNotSupported(CheckpointError, TypeError):
    """Raised when a value in the state cannot be stored without pickling it."""


class InvalidStatus(CheckpointError, ValueError):
    """Raised when a train status does not hold together or its JSON does not parse."""


class InvalidManifest(CheckpointError, ValueError):
    """Raised when a manifest does not parse or does not match its own checksum."""


class UnknownManifestVersion(InvalidManifest):
    """Raised when a manifest was written by a later version of this package."""
