"""tiny.py, with faults to order: a file in <record_dir> names one, and whoever obeys removes it first.

- die-in-init holds a rank: at the next init with such a rank it kills itself while all others are in Horovod's init(),
  which cannot be complete without it;
- end-<worker> holds "raise", "sys.exit" or "os._exit" and a number of steps: so that worker ends, in the middle of the
  step after so many. Several with the same number end in the same step, before any of them hears of another's end.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import tiny

import edl_collective as edl

#: for the others to get into init
OTHERS_S = 0.1


class Planned(Exception):
    """Raised on order."""


def die_in_init(order: Path) -> None:
    init = hvd.init

    def dying_init(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(FileNotFoundError):
            if order.read_text() == os.environ["HOROVOD_RANK"]:
                order.unlink()
                time.sleep(OTHERS_S)
                os.kill(os.getpid(), signal.SIGKILL)
        init(*args, **kwargs)

    hvd.init = dying_init


def end_in_a_step(order: Path) -> None:
    step = edl.State.step

    def ending_step(state: edl.State) -> None:
        if order.exists():
            how, steps = order.read_text().split()
            if state.global_step >= int(steps):
                order.unlink()
                if how == "raise":
                    raise Planned
                sys.exit(3) if how == "sys.exit" else os._exit(4)
        step(state)

    edl.State.step = ending_step  # type: ignore[method-assign, assignment]


def main() -> None:
    orders = Path(sys.argv[sys.argv.index("--record_dir") + 1])
    die_in_init(orders / "die-in-init")
    end_in_a_step(orders / f"end-{os.environ['EDL_WORKER']}")
    tiny.main()


if __name__ == "__main__":
    main()
