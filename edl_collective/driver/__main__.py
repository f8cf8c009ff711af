"""python -m edl_collective.driver: the process that forms the worlds of one job. Imports no torch and no Horovod.

Exit status 0: the job has ended, or SIGTERM; 2: wrong options; 3: another driver leads this job; 4: no ZooKeeper, or
a record that cannot be used.
"""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from edl_collective.coord.access import Access
from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.errors import CoordError
from edl_collective.coord.key_file import KeyFileError, load_key
from edl_collective.coord.paths import Paths, check_name
from edl_collective.coord.zk_store import ZkStore
from edl_collective.driver import world
from edl_collective.driver.process import DriverProcess
from edl_collective.driver.wire import driver_key

EXIT_STORE = 4

_DESCRIPTION = """\
Forms the world of each generation of one job: which workers train together and with which ranks.
JobClients start and restart it; you never need to. It keeps nothing but the rendezvous record in ZooKeeper,
so it may be killed at any time: its successor adopts the running workers."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edl_collective.driver",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = world.Config()
    add = parser.add_argument
    add("--zookeeper", required=True, metavar="HOSTS", help="ZooKeeper servers, as in host:2181,host:2181")
    add("--root", default="/edl", help="path in ZooKeeper below which EDL keeps its records (default %(default)s)")
    add("--job", required=True, help="the job to drive")
    add("--node", required=True, help="the node that this process runs on")
    add("--host", default="127.0.0.1", help="address to listen on; the other nodes must reach it (default %(default)s)")
    add("--key-file", required=True, type=Path, help="file with the cluster key; proxies must hold the same")
    add("--session-timeout", type=float, default=10.0, metavar="SECONDS", help="of ZooKeeper (default %(default)s)")
    graces = {
        "form": (default.form_grace_s, "wait for all planned workers before min_np of them start a job"),
        "join": (default.join_grace_s, "the first newcomer waits for the other planned ones, while training goes on"),
        "suspect": (default.suspect_grace_s, "wait for an explanation when the collective of one worker failed"),
        "straggle": (
            default.straggle_grace_s,
            "after the first came to the gate as asked, before the others are aborted",
        ),
        "answer": (default.answer_grace_s, "a connected node that only ZooKeeper has lost may take to say so"),
        "absence": (default.absence_grace_s, "a planned node may be missing so long if no JobServer judges it"),
    }
    for name, (seconds, text) in graces.items():
        add(f"--{name}-grace", type=float, default=seconds, metavar="SECONDS", help=f"{text} (default %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s driver %(levelname)s %(message)s")
    try:
        check_name("job", options.job)
        check_name("node", options.node)
        paths = Paths(options.root)
        key = load_key(options.key_file)
        config = world.Config(
            form_grace_s=options.form_grace,
            join_grace_s=options.join_grace,
            suspect_grace_s=options.suspect_grace,
            straggle_grace_s=options.straggle_grace,
            answer_grace_s=options.answer_grace,
            absence_grace_s=options.absence_grace,
        )
    except (ValueError, KeyFileError) as error:
        parser.error(str(error))
    try:
        return asyncio.run(_run(options, paths, key, config))
    except (CoordError, OSError) as error:
        print(f"driver of {options.job}: {error}", file=sys.stderr)
        return EXIT_STORE


async def _run(options: argparse.Namespace, paths: Paths, key: ClusterKey, config: world.Config) -> int:
    access = Access.of_key(key, paths)
    store = ZkStore(options.zookeeper, session_timeout_s=options.session_timeout, access=access)
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, store.start)
        driver = DriverProcess(
            store, paths, options.job, options.node, options.host, driver_key(key, options.job), SystemClock(), config
        )
        loop.add_signal_handler(signal.SIGTERM, driver.stop)
        loop.add_signal_handler(signal.SIGINT, driver.stop)
        return await driver.run()
    finally:
        await loop.run_in_executor(None, store.close)


if __name__ == "__main__":
    sys.exit(main())
