"""What was ordered for this node: whether somebody drains it, and by when its workers must have left.

A deadline counts from the moment at which this JobClient heard of it, so that clocks need not agree. An order that does
not parse drains nothing and is said in the log. What follows from an order is decided in jobclient.decide.
"""

import logging
from collections.abc import Callable

from edl_collective.coord.errors import RecordError
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DrainRecord, decode
from edl_collective.coord.store import Store

logger = logging.getLogger(__name__)


class Orders:
    """`wake` is called from a thread of the store when a refresh has work to do."""

    def __init__(self, store: Store, paths: Paths, node: str, wake: Callable[[], None]) -> None:
        self._path = paths.drain(node)
        self._mirror = Mirror(store, self._path, wake)
        self._data = b""
        self.drained = False
        #: monotonic time by which all workers must have left; None: no such time was ordered
        self.leave_by_s: float | None = None

    def refresh(self, now_s: float) -> None:
        """Read what has changed. `now_s`: monotonic. Raises Disconnected."""
        found = self._mirror.refresh().get(self._path)
        data = found.data if found is not None else b""
        if data == self._data:
            return
        self._data = data
        self.drained, self.leave_by_s = False, None
        if not data:
            logger.info("the drain or cordon of this node was cancelled")
            return
        try:
            order = decode(data, DrainRecord, self._path)
        except RecordError as error:
            logger.error("%s", error)
            return
        if order.cordon:  # what is planned here already may start; nothing more will be planned
            logger.info("this node is cordoned: it gets no more workers")
            return
        self.drained = True
        self.leave_by_s = None if order.deadline_s is None else now_s + order.deadline_s
        within = "" if order.deadline_s is None else f" within {order.deadline_s:g} s"
        logger.info("this node drains: its workers are to leave%s", within)

    def close(self) -> None:
        self._mirror.close()
