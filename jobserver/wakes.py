"""Who wants to know that the store may hold something new: the control loop, and whoever tells of changes."""

from collections.abc import Callable


class Wakes:
    """Listeners, called on a thread of the store; they must return at once."""

    def __init__(self, *listeners: Callable[[], None]) -> None:
        self._listeners = listeners
        #: it rang; cleared by who looks what is new, before looking
        self.rung = False

    def add(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` from now on; returns what ends that."""
        self._listeners = (*self._listeners, listener)

        def forget() -> None:
            self._listeners = tuple(other for other in self._listeners if other != listener)

        return forget

    def ring(self) -> None:
        self.rung = True
        for listener in self._listeners:
            listener()
