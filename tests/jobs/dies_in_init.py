"""tiny.py, with a fault: the worker of one rank kills itself while all others are inside Horovod's init().

The file <record_dir>/die-in-init holds the rank; whoever obeys removes it first. So the fault happens once, at the next
init in which there is such a rank. Init cannot be complete without that rank: the others are in it when it dies.
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

#: for the others to get into init
OTHERS_S = 0.1


def main() -> None:
    order = Path(sys.argv[sys.argv.index("--record_dir") + 1]) / "die-in-init"
    init = hvd.init

    def dying_init(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(FileNotFoundError):
            if order.read_text() == os.environ["HOROVOD_RANK"]:
                order.unlink()
                time.sleep(OTHERS_S)
                os.kill(os.getpid(), signal.SIGKILL)
        init(*args, **kwargs)

    hvd.init = dying_init
    tiny.main()


if __name__ == "__main__":
    main()
