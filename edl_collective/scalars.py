"""Curves for TensorBoard, written by whoever speaks for the job, into the folder that EDL_TENSORBOARD names.

Each process that speaks writes a file of its own; TensorBoard shows them as one run, and what was trained again after a
restart with the newer values. Where the package is missing, training goes on without curves, and one line says so.
"""

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

VARIABLE = "EDL_TENSORBOARD"


class Scalars:
    """`folder`: where the files go, "" for nowhere."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._writer: Any = None

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Values by name at a step; those that are None are not known. On disk when the call returns."""
        if not self._folder:
            return
        if self._writer is None:
            self._writer = self._open()
        if self._writer is None:
            return
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _open(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            logger.warning(
                "%s is set, but no curves are written: %s (pip install 'edl-elastic[tensorboard]')", VARIABLE, error
            )
            self._folder = ""
            return None
        try:
            return SummaryWriter(self._folder)
        except OSError as error:
            logger.warning("no curves are written to %s, which %s names: %s", self._folder, VARIABLE, error)
            self._folder = ""
            return None
