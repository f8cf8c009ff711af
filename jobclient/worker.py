"""One worker of this node, from its package hook to the moment its slot is free again.

Keeps the record that ZooKeeper is to show and what the worker said; every change calls `changed`. It decides nothing:
jobclient.decide says when it starts, leaves and stops.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from msgspec.structs import replace

from edl_collective.coord.records import JobKind, JobSpec, NodeRecord, PlannedWorker, WorkerRecord, WorkerState
from edl_collective.messages import (
    Abort,
    AgentMessage,
    Assigned,
    Finished,
    Gate,
    HeardAbort,
    Leave,
    Running,
    WorkerMessage,
)
from jobclient.decide import JobView, LocalWorker, Missing, outcome
from jobclient.processes import NOT_STARTED, Command, Process, begin_log, exit_text, log_tail

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """The commands of a worker: the package hook, if any, runs to its end first."""

    hook: Command | None
    main: Command


class Worker:
    """Raises nothing: what goes wrong at the start is an exit, with the reason in the record's log_tail."""

    def __init__(
        self,
        node: NodeRecord,
        spec: JobSpec,
        planned: PlannedWorker,
        launch: Launch,
        started_at: float,
        changed: Callable[["Worker"], None],
        drain: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """`drain(job, worker)` returns when everything that the worker said before its end has been heard."""
        self.job = spec.job
        self.name = planned.worker
        #: tells the job from one of the same name that was submitted after it was removed
        self.submitted_at = spec.submitted_at
        self.record = WorkerRecord(
            worker=planned.worker,
            node=node.node,
            slot=planned.slot,
            incarnation=node.incarnation,
            state=WorkerState.STARTING,
            started_at=started_at,
        )
        self.rank: int | None = None
        #: neither started nor stopped
        self.fresh = True
        #: it runs from its start on: there is no gate for it
        self._is_teacher = spec.kind is JobKind.TEACHER
        #: nothing of it is left on this node
        self.gone = False
        self._cold = True
        self._started_s: float | None = None
        self._leave_by_s: float | None = None
        self._told_to_leave = False
        self._said_finished = False
        #: the generation whose init it is in
        self._joining: int | None = None
        #: it was killed there
        self._aborted = False
        #: the generation that it trains in
        self._training: int | None = None
        self._missing: Missing | None = None
        #: why it was given up; empty if it was not
        self._given_up = ""
        self._stop_timeout_s: float | None = None
        self._launch = launch
        self._changed = changed
        self._drain = drain
        self._ending: asyncio.Task[None] | None = None
        self._process: Process | None = None

    def view(self) -> LocalWorker:
        return LocalWorker(
            job=self.job,
            worker=self.name,
            slot=self.record.slot,
            cold=self._cold,
            submitted_at=self.submitted_at,
            started_s=self._started_s,
            missing=self._missing,
            leave_by_s=self._leave_by_s,
            stopping=self._stop_timeout_s is not None or bool(self._given_up),
            exited=self.exited,
        )

    @property
    def exited(self) -> bool:
        return self.record.state is WorkerState.EXITED

    @property
    def exit_text(self) -> str:
        """How it ended, for people; empty before."""
        return self._given_up or ("" if self.record.exit_code is None else exit_text(self.record.exit_code))

    def is_recorded(self, job: JobView | None, waits: bool) -> bool:
        """Whether its exit is known, or needs to be known no more. `waits`: its record is still to be written.

        The JobServer deletes old records of exits: one that was written and is not there has been read. While a plan
        still lists the worker, the snapshot may be older than its record, and it would be started again.
        """
        if job is None or job.spec is None or job.spec.submitted_at != self.submitted_at:
            return True
        record = job.workers.get(self.name)
        if record is not None:
            return record.state is WorkerState.EXITED
        planned = job.plan is None or any(p.worker == self.name for p in job.plan.everybody)
        return not planned and not waits

    def start(self, now_s: float) -> None:
        """Begin with the package hook, if there is one. `now_s`: monotonic."""
        self.fresh = False
        self._started_s = now_s
        hook = self._launch.hook
        self._run(hook or self._launch.main, self._hook_changed if hook else self._main_changed)

    def let_leave(self, leave_by_s: float) -> None:
        """It has until `leave_by_s` (monotonic) to leave at a step boundary."""
        self._leave_by_s = leave_by_s
        self._told_to_leave = True
        self._update(state=WorkerState.LEAVING)

    def stop(self, timeout_s: float) -> None:
        """Begin the stop ladder."""
        self._stop_timeout_s = timeout_s
        self._told_to_leave = True
        if self.fresh:
            self._never_start()
        self._update(state=WorkerState.LEAVING)
        if self._process is not None:
            self._process.stop(timeout_s)

    def kill(self) -> None:
        """SIGKILL at once."""
        self._told_to_leave = True
        if self.fresh:
            self._never_start()
        if self._process is not None:
            self._process.kill()

    def give_up(self, reason: str) -> None:
        """SIGKILL at once, for a worker that hangs; its exit is a failure with this reason."""
        self._given_up = reason
        logger.warning("job %s: worker %s %s: it is killed", self.job, self.name, reason)
        if self._process is not None:
            self._process.kill()

    def asked_back(self, now_s: float) -> int | None:
        """To be called when it is told (again) that its generation is over; that generation, None if it is back."""
        if self._missing is None:
            return None
        silent_s = now_s if self._missing.silent_since_s is None else self._missing.silent_since_s
        self._missing = Missing(now_s, silent_s, self._missing.inside_since_s)
        return self._training

    def heard(self, message: WorkerMessage, now_s: float) -> None:
        """Note what the worker said of itself. `now_s`: monotonic."""
        if isinstance(message, Gate | Running):
            self._joining = None
        if isinstance(message, Gate | Running | Finished):
            self._training = self._missing = None
        match message:
            case HeardAbort(inside=inside) if self._missing is not None:
                since_s = self._missing.inside_since_s
                inside_s = (now_s if since_s is None else since_s) if inside else None
                self._missing = Missing(self._missing.asked_s, None, inside_s)
            case Gate(last_generation=last):
                self._cold = False
                if last == 0 and self.record.state is WorkerState.STARTING:
                    self._update(state=WorkerState.STANDBY)
            case Running(generation=generation):
                self._training = generation
                leaving = self.record.state is WorkerState.LEAVING
                state = WorkerState.LEAVING if leaving else WorkerState.RUNNING
                self._update(state=state, generation=generation)
            case Finished():
                self._said_finished = True

    def told(self, message: AgentMessage, now_s: float) -> None:
        """Note what is sent to the worker. An Abort ends one that is in Horovod's init: it cannot hear it there.

        One that trains is missed from the Abort until it is back at the gate. `now_s`: monotonic.
        """
        match message:
            case Assigned(rank=rank, generation=generation):
                self.rank, self._joining = rank, generation
                self.record = replace(self.record, placed=True)  # written with the next change, which is near
            case Abort(generation=generation) if self._joining is not None and self._joining <= generation:
                logger.warning("job %s: kill %s: generation %d lost a member", self.job, self.name, generation)
                self._aborted = True
                if self._process is not None:
                    self._process.kill()
            case Abort(generation=generation) if self._training is not None and self._training <= generation:
                self._missing = self._missing or Missing(asked_s=now_s, silent_since_s=now_s)
            case Leave():
                self._told_to_leave = True

    def _never_start(self) -> None:
        self.fresh = False
        self._end(NOT_STARTED, "")
        self._set_gone()

    def _run(self, command: Command, changed: Callable[[Process], None]) -> None:
        try:
            if self._process is None:
                begin_log(command.log)
            self._process = Process(command, changed)
        except (OSError, ValueError) as error:  # ValueError: a text that no process can have
            self._end(NOT_STARTED, f"cannot start {command.argv[0]}: {error}")
            self._set_gone()

    def _hook_changed(self, process: Process) -> None:
        if not process.gone.done():
            return
        code = process.exited.result()
        if code == 0 and not self._told_to_leave:
            self._run(self._launch.main, self._main_changed)
            return
        hook = process.command.argv[-3]  # what follows it is -pod_id and the worker, before it may stand a shell
        problem = process.problem or self._given_up_text() or f"package hook {hook} failed with {exit_text(code)}"
        self._end(code or NOT_STARTED, "" if self._told_to_leave else problem)
        self._set_gone()

    def _main_changed(self, process: Process) -> None:
        if process.exited.done() and self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._finish(process))
        elif process.pid is not None and self.record.pid is None:
            self._update(pid=process.pid, **({"state": WorkerState.RUNNING} if self._is_teacher else {}))

    async def _finish(self, process: Process) -> None:
        """The exit may be known before the last words are: Finished decides how others take it."""
        await self._drain(self.job, self.name)
        self._end(process.exited.result(), self._given_up_text() or process.problem or "")
        await process.gone
        self._set_gone()

    def _given_up_text(self) -> str:
        return f"worker {self.name} {self._given_up}" if self._given_up else ""

    def _end(self, code: int, problem: str) -> None:
        """Record the exit, once."""
        if self.exited:
            return
        words = {"said_finished": self._said_finished, "told_to_leave": self._told_to_leave}
        how = outcome(code, **words, aborted=self._aborted)
        tail = ""
        if how is how.FAILED:
            tail = "\n".join(filter(None, (problem, log_tail(self._launch.main.log))))
        self._update(state=WorkerState.EXITED, exit_code=code, outcome=how, log_tail=tail)

    def _set_gone(self) -> None:
        self.gone = True
        self._changed(self)

    def _update(self, **fields: object) -> None:
        if self.exited:
            return
        record = replace(self.record, **fields)
        if record != self.record:
            self.record = record
            self._changed(self)
