"""edl teacher register: list a server of another make, as long as it answers."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from distill.errors import ConfigError, DistillError, TeacherUnavailable
from distill.source import parse_teachers
from distill.teacher.command import read_token
from edl_collective.coord.errors import CoordError
from edl_collective.coord.paths import Paths, check_name

if TYPE_CHECKING:
    from distill.teacher.register import Prober

_EPILOG = """\b
Example: a Triton server that serves the model resnet50
  edl teacher register http://triton:8000 resnet --model resnet50 --zookeeper zk:2181
Students of the service ask it like any other teacher. It is taken off the list while it fails, and put back when it
answers again. It tells no model hash, so students can only compare names, dtypes and shapes.
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("url")
@click.argument("service")
@click.option("--model", help="name of the model there (default: its only one, if the server says)")
@click.option("--zookeeper", metavar="HOSTS", required=True, envvar="EDL_ZOOKEEPER", help="where it is listed")
@click.option("--root", default="/edl", show_default=True, envvar="EDL_ZOOKEEPER_ROOT", help="of EDL in ZooKeeper")
@click.option("--teacher-id", help="its name in the service (default: from host and port)")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="samples a second that it can answer, if known"
)
@click.option(
    "--every", "every_s", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="seconds between checks"
)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=5.0, show_default=True,
              help="seconds that a check may take")  # fmt: skip
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="file with the bearer token that it asks for (or EDL_TEACHER_TOKEN)",
)
@click.option(
    "--ca-file", type=click.Path(path_type=Path), help="certificates that an https server's must descend from"
)
@click.option("--once", is_flag=True, help="only check, list nothing")
def register(
    url: str,
    service: str,
    model: str | None,
    zookeeper: str,
    root: str,
    teacher_id: str | None,
    rate: float | None,
    every_s: float,
    timeout_s: float,
    token_file: Path | None,
    ca_file: Path | None,
    once: bool,
) -> None:
    """List a server of another make (Triton, OpenVINO Model Server, KServe) as a teacher."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    from distill.teacher.register import Foreign, Prober, only_model
    from distill.teacher_client import TeacherClient

    try:
        [place] = parse_teachers([url])
        paths = Paths(root)
        check_name("service", service)
        parts = urlsplit(place.url)
        teacher = check_name("teacher", teacher_id or f"{parts.hostname}-{parts.port}")
        with TeacherClient(place.url, token=read_token(token_file), ca_file=ca_file, timeout_s=timeout_s) as client:
            prober = Prober(
                client, Foreign(teacher, place.url, model or only_model(client, place.url), rate, time.time())
            )
            problem = prober.check()
            if problem is not None:
                raise TeacherUnavailable(problem)
            click.echo(f"teacher {teacher} of service {service} answers at {place.url}")
            if not once:
                _keep_listed(prober, paths, service, teacher, zookeeper, every_s)
    except (ConfigError, ValueError) as error:
        _fail(error, 2)
    except (DistillError, CoordError) as error:
        _fail(error, 1)


def _keep_listed(prober: "Prober", paths: Paths, service: str, teacher: str, zookeeper: str, every_s: float) -> None:
    from distill.teacher.registration import Registration
    from edl_collective.coord.key_file import services_access
    from edl_collective.coord.zk_store import ZkStore

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = ZkStore(zookeeper, access=services_access(zookeeper, paths.root, os.environ)).start()
    try:
        registration = Registration(store, paths, service, teacher, prober.record)
        registration.start()
        while not stop.wait(every_s):
            prober.check()
            registration.wake()
        registration.close()
    finally:
        store.close()


def _fail(error: Exception, code: int) -> None:
    click.echo(f"Error: {error}", err=True)
    sys.exit(code)
