"""Where this process runs: what its JobClient, or horovodrun, said in the environment. [pure]

The only place of the training library that knows names of environment variables; jobclient/worker_env.py sets those
that begin with EDL_.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

DEFAULT_HELD_SHARE = 0.5


class Launcher(Enum):
    """Who started this process, and so who decides which world it is in."""

    JOBCLIENT = "jobclient"
    HOROVODRUN_ELASTIC = "horovodrun elastic"
    #: horovodrun -np N, mpirun, or nobody: the world never changes
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Membership:
    """A worker of a JobClient: whose it is and how it reaches the JobClient."""

    job: str
    worker: str
    node: str
    slot: int
    token: str
    agent_socket: str
    #: folder in memory for the state of the node's workers between two worlds; None where there is none
    held_dir: str | None = None
    #: the part of the free memory that it may take
    held_share: float = DEFAULT_HELD_SHARE
    #: whether gloo's event loops are kept turning while worlds form (gloo_loops.py)
    gloo_loops: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """`membership` is set exactly when `launcher` is JOBCLIENT."""

    launcher: Launcher
    membership: Membership | None
    #: index of the CUDA device this process should use among the visible ones
    device_index: int
    #: threads for torch; None leaves torch's own choice
    threads: int | None
    checkpoint_url: str | None


#: Horovod 0.28.1 keeps values that these fix across a shutdown, then writes its defaults over the wrong ones: a worker
#: that was in a world before fuses 1 MiB where a new one fuses 128, and both abort (BayesianParameter::SetValue).
_NOT_ELASTIC = ("HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD", "HOROVOD_AUTOTUNE")


def read_context(environ: Mapping[str, str]) -> Context:
    """The context that `environ` describes. Raises ValueError when it is incomplete, malformed or not elastic."""
    checkpoint_url = environ.get("EDL_CHECKPOINT_URL") or None
    threads = _number(environ, "OMP_NUM_THREADS")
    if "EDL_AGENT_SOCKET" in environ:
        membership = _membership(environ)
        _check_elastic(environ)
        # A JobClient makes exactly one device visible to each slot.
        return Context(Launcher.JOBCLIENT, membership, 0, threads, checkpoint_url)
    elastic = environ.get("HOROVOD_ELASTIC") == "1" and "HOROVOD_GLOO_RENDEZVOUS_ADDR" in environ
    if elastic:
        _check_elastic(environ)
    local_rank = _number(environ, "HOROVOD_LOCAL_RANK") or _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    launcher = Launcher.HOROVODRUN_ELASTIC if elastic else Launcher.FIXED
    return Context(launcher, None, local_rank, threads, checkpoint_url)


def _check_elastic(environ: Mapping[str, str]) -> None:
    for name in _NOT_ELASTIC:
        if environ.get(name, "0") != "0":
            raise ValueError(
                f"{name} is {environ[name]!r}: unset it in an elastic job, because Horovod applies it differently to "
                "new workers and to those that were in a world before"
            )


def _membership(environ: Mapping[str, str]) -> Membership:
    names = ("EDL_JOB", "EDL_WORKER", "EDL_NODE", "EDL_SLOT", "EDL_WORKER_TOKEN")
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise ValueError(
            f"EDL_AGENT_SOCKET is set but {', '.join(missing)} is not: start workers through a JobClient, "
            "or unset EDL_AGENT_SOCKET to run the script alone"
        )
    return Membership(
        job=environ["EDL_JOB"],
        worker=environ["EDL_WORKER"],
        node=environ["EDL_NODE"],
        slot=_number(environ, "EDL_SLOT") or 0,
        token=environ["EDL_WORKER_TOKEN"],
        agent_socket=environ["EDL_AGENT_SOCKET"],
        held_dir=environ.get("EDL_HELD_DIR") or None,
        held_share=_share(environ, "EDL_HELD_SHARE", DEFAULT_HELD_SHARE),
        gloo_loops=_switch(environ, "EDL_GLOO_LOOPS"),
    )


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}: it must be a whole number") from None


def _switch(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name) or "1"
    if text not in ("0", "1"):
        raise ValueError(f"{name} is {text!r}: it must be 0 or 1")
    return text == "1"


def _share(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {text!r}: it must be a number from 0 to 1")
    return value
