"""Errors of the training library. [pure]

Every error of edl_collective that is not a plain ValueError for bad input derives from CollectiveError.
"""


class CollectiveError(Exception):
    """Base of every error raised by the training library."""


class LedgerError(CollectiveError):
    """Raised when a ledger does not parse, or when an epoch called complete lost or doubled samples."""


class ProgressError(CollectiveError):
    """Raised when an iteration and the progress of its sampler disagree, so that samples would be lost or doubled."""


class AuditError(CollectiveError):
    """Raised when a step log or a lineage cannot be read as one."""
