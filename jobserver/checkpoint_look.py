"""One look at the checkpoints of a URL, in a process of its own: python -m jobserver.checkpoint_look.

A file system that does not answer, or a client library that crashes, takes this process and not the JobServer. The URL
comes on standard input, for it may hold a password; one JSON object goes to standard output: `checkpoints`, newest
first, and `total`, or `problem`. Manifests are read and sizes compared, contents are not. It changes nothing.
"""

import json
import sys
import time
from typing import Any

from checkpoints import store
from checkpoints.drivers import opened
from checkpoints.errors import CheckpointError

MOST = 50
#: after this long what was seen is told, and how many are left
BUDGET_S = 6.0
_LONGEST_TEXT = 300


def look(url: str, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """At the newest MOST attempts, as far as the time allows."""
    until_s = time.monotonic() + budget_s
    rows: list[dict[str, Any]] = []
    try:
        with opened(url) as folder:
            attempts = store.attempts(folder)
            for attempt in attempts[:MOST]:
                rows.append(_row(store.examine(folder, attempt)))
                if time.monotonic() > until_s:
                    break
    except (CheckpointError, OSError, ValueError) as error:
        return {"problem": " ".join(str(error).split())[:_LONGEST_TEXT]}
    return {"checkpoints": rows, "total": len(attempts)}


def _row(examined: store.Examined) -> dict[str, Any]:
    info = examined.info("")
    return {
        "name": info.name,
        "number": info.number,
        "condition": info.condition.value,
        "problem": info.problem and info.problem[:_LONGEST_TEXT],
        "pinned": info.pinned,
        "epoch": None if info.status is None else info.status.epoch_no,
        "step": info.global_step,
        "size_bytes": info.size_bytes,
        "created": info.created,
    }


if __name__ == "__main__":
    json.dump(look(sys.stdin.read()), sys.stdout)
