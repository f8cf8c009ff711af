"""A teacher that serves nothing: it lists itself as a JobClient's environment says, and leaves on SIGTERM.

`--drained DIR`: where it writes its name when it has left in order.
"""

import argparse
import os
import signal
import socket
import threading
from pathlib import Path

from distill.records import TeacherRecord
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.zk_store import ZkStore

RATE = 100.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drained", type=Path, required=True)
    options = parser.parse_args()
    leave = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leave.set())
    name, host = os.environ["EDL_TEACHER_TEACHER_ID"], os.environ["EDL_TEACHER_HOST"]
    with socket.create_server((host, int(os.environ["EDL_TEACHER_PORT"]))) as listener:
        record = TeacherRecord(
            teacher=name,
            url=f"http://{host}:{listener.getsockname()[1]}",
            model="tiny",
            rate=RATE,
            job=os.environ["EDL_JOB"],
            worker=os.environ["EDL_WORKER"],
        )
        store = ZkStore(os.environ["EDL_ZOOKEEPER"], session_timeout_s=4.0).start()
        path = Paths(os.environ["EDL_ZOOKEEPER_ROOT"]).teacher(os.environ["EDL_TEACHER_SERVICE"], name)
        store.create(path, encode(record, path), ephemeral=True)
        leave.wait()
        store.close()
    (options.drained / name).touch()


if __name__ == "__main__":
    main()
