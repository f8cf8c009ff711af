"""The checkpoints of an elastic job: a save at the end of each epoch, beside the training, and where to go on from.

Invariant: people are told that an epoch is complete when its checkpoint is durable, so what they were told is not
trained again after the death of all workers. A save that failed is told at once and raised at the end of the next
epoch. It belongs to the training's thread; results come from the saving thread.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from checkpoints import (
    CheckpointError,
    CheckpointManager,
    LoadedCheckpoint,
    SaveResult,
    TrainStatus,
    load_checkpoint,
    preflight,
)
from edl_collective.errors import AgentLost
from edl_collective.reporter import Reporter

logger = logging.getLogger(__name__)


class EpochSaver:
    """Saves and loads for one process; only the one of rank 0 saves.

    Arguments: url, the checkpoint folder; keep, how many checkpoints remain; reporter, which is told how saves ended.
    """

    def __init__(self, url: str, keep: int, reporter: Reporter) -> None:
        self._url = url
        self._keep = keep
        self._reporter = reporter
        self._manager: CheckpointManager | None = None
        #: tells the end of the epoch that is being saved
        self._told: Callable[[], None] = lambda: None

    def resume(self) -> LoadedCheckpoint | None:
        """The newest valid checkpoint. Raises CheckpointError, with the knob, when the folder cannot be used."""
        if self._manager is not None:
            try:
                self._manager.wait()
            except CheckpointError as error:
                logger.warning("going back to the checkpoint before: %s", error)
        preflight(self._url, knob="--checkpoint or EDL_CHECKPOINT_PATH")
        return load_checkpoint(self._url)

    def reserve(self, state: Mapping[str, Any]) -> None:
        """Take the memory for copies of this state, beside the training."""
        self._made().reserve(**state)

    def save(self, status: TrainStatus, state: Mapping[str, Any], order: int, told: Callable[[], None]) -> None:
        """Copy the state and write it beside the training; `told` is called when it is durable, or has failed.

        Arguments: order, the driver epoch of the checkpoint. Raises CheckpointError when the save before failed.
        """
        manager = self._made()
        manager.wait()
        manager.driver_epoch = order
        self._told = told
        manager.save(status, **state)

    def finish(self) -> None:
        """Wait for the save in flight. Raises CheckpointError when it failed."""
        if self._manager is not None:
            self._manager.wait()

    def _made(self) -> CheckpointManager:
        if self._manager is None:
            self._manager = CheckpointManager(self._url, keep=self._keep, on_result=self._ended)
        return self._manager

    def _ended(self, result: SaveResult) -> None:
        epoch = result.status.epoch_no
        try:
            if result.error is None:
                self._reporter.saved(result.status, result.seconds, result.blocked_s)
            else:
                self._reporter.not_saved(epoch, str(result.error))
            self._told()
        except AgentLost:
            # This worker was told to leave, or its node is dying; the checkpoint is there all the same.
            logger.info("nobody hears any more how epoch %d was saved", epoch)
