"""edl ckpt: look after checkpoints; needs no JobServer, no ZooKeeper, no web framework and no torch."""

import click

from jobserver.cli.lazy import LazyGroup

#: command -> (module, its short help)
COMMANDS: dict[str, tuple[str, str]] = {
    "ls": ("jobserver.cli.ckpt_look", "List the checkpoints, newest first, with their condition."),
    "show": ("jobserver.cli.ckpt_look", "Show one: where the training stood, and its files."),
    "verify": ("jobserver.cli.ckpt_data", "Read every byte and compare it with its checksum."),
    "pin": ("jobserver.cli.ckpt_look", "Keep one whatever the rules say."),
    "unpin": ("jobserver.cli.ckpt_look", "Let the rules decide about it again."),
    "gc": ("jobserver.cli.ckpt_look", "Collect what no rule keeps; a dry run, unless --yes is given."),
    "cp": ("jobserver.cli.ckpt_data", "Copy one to another folder or file system, verified."),
    "export": ("jobserver.cli.ckpt_data", "Write a model's weights to one safetensors file."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def ckpt() -> None:
    """Look after checkpoints.

    URL is the folder that a job saves to, on any file system: /data/run, hdfs://namenode:8020/run,
    hdfs://nn1:8020,nn2:8020/run?driver=libhdfs, webhdfs://namenode:50070/run, s3://bucket/run.
    CHECKPOINT is a number (7) or a name (ckpt-00000007-e2-s12345-0123456789ab) as `edl ckpt ls` shows them; of several
    with one number the newest is meant.

    \b
    edl ckpt ls hdfs://nn:8020/run              what is there, newest first
    edl ckpt show hdfs://nn:8020/run 7          where the training stood, and the files
    edl ckpt verify hdfs://nn:8020/run          read all of it, compare checksums
    edl ckpt pin hdfs://nn:8020/run 7           keep 7 whatever the rules say
    edl ckpt unpin hdfs://nn:8020/run 7         let the rules decide again
    edl ckpt gc hdfs://nn:8020/run --keep 3     what would go, and why; --yes removes it
    edl ckpt cp hdfs://nn:8020/run s3://b/run   the newest, to another file system
    edl ckpt export /data/run model.safetensors
    """
