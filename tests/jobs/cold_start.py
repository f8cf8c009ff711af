"""tiny.py, whose workers can be made to fail before they are warm: each takes the next word of the file COLD_FAULT.

die: exit status 3. hang: the process stops itself. Without a word that is left it starts as usual. One worker at a time
may start while there are words: nothing keeps two from taking the same.
"""

import os
import signal
from pathlib import Path


def fail() -> None:
    """At once, so that tests need not wait for an import."""
    fault = Path(os.environ["COLD_FAULT"])
    what, _, later = (fault.read_text() if fault.exists() else "").partition(" ")
    if what:
        fault.write_text(later)
    if what == "die":
        raise SystemExit(3)
    if what == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    fail()

    import tiny

    tiny.main()
