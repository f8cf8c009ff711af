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


class NotInitialised(CollectiveError):
    """Raised when the library is used before edl_collective.init()."""

    def __init__(self) -> None:
        super().__init__("call edl_collective.init() first, at the top of the script")


class NotInWorld(CollectiveError):
    """Raised when a rank or a size is asked for before the gate, where there is none yet."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is known only inside the function that edl_collective.run wraps: the world may change"


class AgentLost(CollectiveError):
    """Raised when the JobClient of this worker is gone, and with it the worker's reason to be."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(socket_path)
        self.socket_path = socket_path

    def __str__(self) -> str:
        return f"the JobClient at {self.socket_path} is gone: this worker ends"


class FruitlessWorlds(CollectiveError):
    """Raised when world after world fails in a collective before a single step was completed."""

    def __init__(self, worlds: int, reason: str) -> None:
        super().__init__(worlds, reason)
        self.worlds = worlds
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.worlds} worlds in a row failed before a step was completed ({self.reason}): members are not lost "
            "that often, so look for what the ranks do differently in the training function"
        )


class StateLost(CollectiveError):
    """Raised when every rank lost its state half-way through a step or a synchronisation, and nothing was saved."""

    def __str__(self) -> str:
        return "no rank holds a whole state and there is no checkpoint: this worker ends, and training begins anew"


class RunTwice(CollectiveError):
    """Raised when a second function is run after the first one has finished under an elastic launcher."""

    def __str__(self) -> str:
        return "edl_collective.run was entered a second time: do all of the training in one function, a job has one end"


class StepOrderError(CollectiveError):
    """Raised when backward() and step() are not called once each for every batch of State.batches()."""


class WorldChanged(CollectiveError):
    """Raised at a step boundary to leave the training function; run() catches it, re-forms the world and calls again.

    A script that catches Exception around its training loop must let this one pass.
    """
