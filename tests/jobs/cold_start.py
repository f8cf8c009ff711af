"""tiny.py, whose workers can be made to fail before they are warm: what the file named by COLD_FAULT says.

die: exit status 3. hang: the process stops itself. Without the file they start as usual.
"""

import os
import signal
from pathlib import Path


def fail() -> None:
    """At once, so that tests need not wait for an import."""
    fault = Path(os.environ["COLD_FAULT"])
    what = fault.read_text() if fault.exists() else ""
    if what == "die":
        raise SystemExit(3)
    if what == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    fail()

    import tiny

    tiny.main()
