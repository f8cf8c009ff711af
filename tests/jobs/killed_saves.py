"""python killed_saves.py FOLDER async|sync before|after: SIGKILL at every step of a save, one process for each.

After each death the newest valid checkpoint is the one before, or the new one where it was complete, whole in either
case, and the next save works. Prints how many processes were killed; exits with 1 and a sentence otherwise.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch
from checkpoint_faults import FaultDriver

from checkpoints import CheckpointManager, TrainStatus
from checkpoints.drivers import open_driver

NUMBERS = 50_000
MOST_STEPS = 200


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL returned")


def save(folder: str, step: int, asynchronous: bool, fail_at: int | None, after: bool) -> None:
    driver = FaultDriver(open_driver(folder), fail_at, after, error=die)
    with CheckpointManager(folder, keep=2, async_save=asynchronous, driver=driver) as manager:
        manager.save(TrainStatus(global_step=step), model={"w": torch.full((NUMBERS,), float(step))})


def in_a_process(work: Callable[[], None]) -> bool:
    """Whether it came to its end; False if it was killed. The parent has one thread, so forking it is safe."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        sys.exit("a save failed in another way than by SIGKILL")
    return True


def newest(folder: str) -> int:
    """The step of the newest valid checkpoint, whose numbers must be its own."""
    model = {"w": torch.zeros(NUMBERS)}
    with CheckpointManager(folder) as manager:
        status = manager.load(model=model)
    if status is None:
        sys.exit("there is no checkpoint any more")
    if not bool((model["w"] == float(status.global_step)).all()):
        sys.exit(f"the checkpoint of step {status.global_step} holds other numbers")
    return status.global_step


def main() -> None:
    folder, asynchronous, after = sys.argv[1], sys.argv[2] == "async", sys.argv[3] == "after"
    torch.set_num_threads(1)
    step = 1
    in_a_process(partial(save, folder, step, asynchronous, None, after))
    for fail_at in range(MOST_STEPS):
        ended = in_a_process(partial(save, folder, step + 1, asynchronous, fail_at, after))
        found = newest(folder)
        if found not in ((step + 1,) if ended else (step, step + 1)):
            sys.exit(f"killed at operation {fail_at}: step {found} is the newest, not {step} or {step + 1}")
        if ended:
            print(fail_at)
            return
        step += 2
        if not in_a_process(partial(save, folder, step, asynchronous, None, after)) or newest(folder) != step:
            sys.exit(f"killed at operation {fail_at}: the next save did not work")
    sys.exit(f"a save has more than {MOST_STEPS} operations")


if __name__ == "__main__":
    main()
