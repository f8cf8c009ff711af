"""A worker's connection to the JobClient of its node: asks for a place in the world, hears notices, reports.

A thread reads; notices are levels (the highest generation that is meant), so that one which comes early, twice or
late means the same. The end of the connection means that the JobClient is dead: `gate` raises.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable

from edl_collective.context import Membership
from edl_collective.errors import AgentLost
from edl_collective.messages import (
    Abort,
    Assigned,
    Finished,
    Gate,
    Happened,
    HeardAbort,
    Interrupt,
    Leave,
    Message,
    Report,
    Running,
    WorkerHello,
    decode_agent_line,
    encode_line,
)

logger = logging.getLogger(__name__)


class AgentLink:
    """Connected from construction to `close`. Raises AgentLost when nobody listens at the socket.

    on_interrupt: called from the reading thread after `interrupted_generation` rose.
    on_abort: called from the reading thread with the generation that lost a member; returns whether the main thread is
        inside a call of Horovod, which the JobClient is told.
    """

    def __init__(
        self,
        membership: Membership,
        on_interrupt: Callable[[], None] = lambda: None,
        on_abort: Callable[[int], bool] = lambda _generation: False,
    ) -> None:
        self._path = membership.agent_socket
        self._on_interrupt = on_interrupt
        self._on_abort = on_abort
        self._send_lock = threading.Lock()
        self._answers: queue.SimpleQueue[Assigned | Leave | None] = queue.SimpleQueue()
        #: highest generation that should stop at its next step boundary
        self.interrupted_generation = 0
        #: the highest epoch of a driver that gave us a place: those below it have been replaced
        self._epoch = 0
        self._closing = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            raise AgentLost(self._path) from error
        self._send(
            WorkerHello(job=membership.job, worker=membership.worker, token=membership.token, pid=os.getpid()),
        )
        self._reader = threading.Thread(target=self._read, name="edl-agent-link", daemon=True)
        self._reader.start()

    def gate(self, last_generation: int) -> Assigned | Leave:
        """Wait for the world after `last_generation`. Raises AgentLost."""
        self._send(Gate(last_generation=last_generation))
        while True:
            answer = self._answers.get()
            if answer is None:
                raise AgentLost(self._path)
            if isinstance(answer, Leave):
                return answer
            if answer.epoch < self._epoch:
                logger.warning("refused a place from the driver of epoch %d: %d was seen", answer.epoch, self._epoch)
            # An answer may come twice, and the second one after we have used the first.
            elif answer.generation > last_generation:
                self._epoch = answer.epoch
                return answer

    def running(self, generation: int) -> None:
        self._send(Running(generation=generation))

    def report(self, report: Report) -> None:
        self._send(report)

    def happened(self, event: Happened) -> None:
        self._send(event)

    def finished(self, generation: int) -> None:
        self._send(Finished(generation=generation))

    def close(self) -> None:
        """End the connection; harmless when the JobClient has ended it already."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _send(self, message: Message) -> None:
        try:
            with self._send_lock:
                self._socket.sendall(encode_line(message))
        except OSError as error:
            raise AgentLost(self._path) from error

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._hear(decode_agent_line(line))
        except (OSError, AgentLost) as error:
            if not self._closing:
                logger.warning("reading from the JobClient failed: %s", error)
        finally:
            self._answers.put(None)

    def _hear(self, message: Assigned | Leave | Interrupt | Abort) -> None:
        match message:
            case Interrupt(generation=generation):
                self.interrupted_generation = max(self.interrupted_generation, generation)
                self._on_interrupt()
            case Abort(generation=generation):
                inside = self._on_abort(generation)
                self._send(HeardAbort(generation=generation, inside=inside))
            case Assigned() | Leave():
                self._answers.put(message)
