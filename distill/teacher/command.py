"""The command line of a teacher: `edl teacher serve` and `python -m distill.teacher_server` are this one command."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from distill.errors import ConfigError, DistillError
from distill.teacher.config import (
    DEFAULT_PORT,
    ServeConfig,
    parse_arguments,
    parse_gpu_ids,
    parse_inputs,
    parse_normalisation,
)
from edl_collective.coord.errors import CoordError

_EPILOG = """\b
Examples:
  A network of your own code, its weights from a checkpoint folder:
    edl teacher serve --model nets:resnet50 --checkpoint hdfs://nn:8020/resnet \\
        --input image:uint8:3,224,224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  An exported program, which says itself what it takes, on two GPUs:
    edl teacher serve --model teacher.pt2 --gpu_ids 0,1 --precision fp16
  Listed in ZooKeeper, for students that say --distill_service resnet:
    edl teacher serve --model teacher.pt2 --host 0.0.0.0 --zookeeper zk:2181 --service resnet

\b
Try it: curl -s http://127.0.0.1:8500/v2/models/NAME; counters are at /metrics.
SIGTERM lets it leave: it answers what it has and ends. A second one ends it at once.
"""


def read_token(file: Path | None) -> str | None:
    """The token in `file`, else that of the environment. Raises ConfigError."""
    if file is None:
        return os.environ.get("EDL_TEACHER_TOKEN") or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file} cannot be read: {error}") from error
    if not token:
        raise ConfigError(f"--token-file {file} is empty")
    return token


_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # a JobClient says in the environment what follows from the slot (EDL_TEACHER_HOST, _PORT, _SERVICE, ...)
    "auto_envvar_prefix": "EDL_TEACHER",
}


@click.command(epilog=_EPILOG, context_settings=_SETTINGS)
@click.option("--model", required=True, help="FILE.pt2 (torch.export), FILE.pt (TorchScript), or module:function")
@click.option("--name", help="name of the model in URLs (default: of the file or function)")
@click.option("--model-args", metavar="JSON", help="keyword arguments of module:function")
@click.option(
    "--checkpoint", metavar="URL", help="weights of module:function: .safetensors, .pt, or a checkpoint folder"
)
@click.option("--checkpoint-state", default="model", show_default=True, help="which state of a checkpoint folder")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME:DTYPE:SHAPE", help="an input of one sample, in the model's order"
)
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="names of the outputs, in the model's order")
@click.option("--classes", type=int, help="of the first output: a model with another number is refused")
@click.option("--mean", metavar="M,M,M", help="uint8 inputs become (pixel / scale - mean) / std, per channel")
@click.option("--std", metavar="S,S,S", help="see --mean")
@click.option("--scale", type=float, default=255.0, show_default=True, help="see --mean")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16", "int8"]), default="fp32", show_default=True,
              help="of weights and sums; int8: the Linear layers, on CPUs")  # fmt: skip
@click.option(
    "--answer", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help="dtype of float outputs"
)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: a slower start, a faster model")
@click.option("--gpu_ids", "--gpu-ids", metavar="0,1", help="a replica on each of these GPUs (default: the CPU)")
@click.option("--threads", type=int, help="CPU threads of the model (default: torch's)")
@click.option("--max-batch", type=int, default=64, show_default=True, help="samples that run at once")
@click.option(
    "--batch-delay-ms",
    type=float,
    default=1.0,
    show_default=True,
    help="how long a request waits for others to run with",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on; 0.0.0.0 for all")
@click.option("--port", type=int, default=DEFAULT_PORT, show_default=True, help="0: any free one")
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="file with the bearer token to ask for (or EDL_TEACHER_TOKEN)"
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="certificate chain (PEM): serve https")
@click.option("--tls-key", type=click.Path(path_type=Path), help="its private key (PEM)")
@click.option("--max-body-mb", type=int, default=64, show_default=True, help="largest request")
@click.option(
    "--max-memory-mb", type=int, default=1024, show_default=True, help="of all requests that are being handled"
)
@click.option("--max-connections", type=int, default=1024, show_default=True, help="beyond, clients are told 503")
@click.option(
    "--drain-timeout",
    "drain_timeout_s",
    type=float,
    default=30.0,
    show_default=True,
    help="seconds to leave in, after SIGTERM",
)
@click.option("--zookeeper", metavar="HOSTS", envvar="EDL_ZOOKEEPER", help="list the teacher there; needs --service")
@click.option("--root", default="/edl", show_default=True, envvar="EDL_ZOOKEEPER_ROOT", help="of EDL in ZooKeeper")
@click.option(
    "--session-timeout",
    "session_timeout_s",
    type=float,
    default=10.0,
    show_default=True,
    help="seconds until a teacher that was killed or frozen is off the list",
)
@click.option("--service", help="name of the service that students ask for")
@click.option("--teacher-id", help="its name in the service (default: the worker's, else host-pid-port)")
@click.option("--advertise", metavar="URL", help="how students reach it (default: from --host and --port)")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(**options: Any) -> None:
    """Serve a model to students, over the Open Inference Protocol."""
    logging.basicConfig(
        level=options.pop("log_level").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        config = build_config(options)
        from distill.teacher.run import serve as run  # torch is loaded for what can work

        run(config, click.echo)
    except (DistillError, OSError, CoordError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1 if isinstance(error, CoordError) else 2)


def build_config(options: dict[str, Any]) -> ServeConfig:
    """Settings from the command line and the environment. Raises ConfigError."""
    normalisation = parse_normalisation(options.pop("mean"), options.pop("std"), options.pop("scale"))
    service = options.pop("service")
    zookeeper = options.pop("zookeeper")
    return ServeConfig(
        normalisation=normalisation,
        model_args=parse_arguments(options.pop("model_args")),
        inputs=parse_inputs(options.pop("inputs")),
        gpu_ids=parse_gpu_ids(options.pop("gpu_ids")),
        token=read_token(options.pop("token_file")),
        service=service,
        # a JobClient's environment names the ensemble for everything; without a service the teacher works alone
        zookeeper=zookeeper if service is not None or os.environ.get("EDL_ZOOKEEPER") != zookeeper else None,
        job=os.environ.get("EDL_JOB"),
        worker=os.environ.get("EDL_WORKER"),
        **options,
    )
