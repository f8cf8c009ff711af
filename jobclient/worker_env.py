"""The environment and the place of the processes that a JobClient starts. [pure]

The variables that children inherit are listed here and nowhere else. What the user put into the spec wins over what is
inherited and over the defaults; the variables by which a worker finds its JobClient and its world cannot be overridden.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edl_collective.coord.auth import SERVICES_TOKEN_VARIABLE
from edl_collective.coord.records import JobSpec, NodeRecord, PlannedWorker

#: names inherited from the JobClient
INHERITED = re.compile(
    r"HOME|USER|LOGNAME|SHELL|PATH|LANG|LANGUAGE|LC_\w+|TZ|TERM|TMPDIR|XDG_\w+|LD_LIBRARY_PATH|LD_PRELOAD|MALLOC_\w+"
    r"|VIRTUAL_ENV|PYTHON\w*|CONDA_\w+|JAVA_HOME|(https?|no)_proxy|(HTTPS?|NO)_PROXY|SSL_CERT_(FILE|DIR)"
    r"|(PADDLE_)?EDL_\w+|(CUDA|NCCL|NVIDIA|TORCH|HF|OMP|MKL|OPENBLAS|KMP|GOMP)_\w+|TORCHINDUCTOR_\w+"
    r"|(FSSPEC|HADOOP|HDFS|AWS|GOOGLE|AZURE)_\w+"
)
#: never passed on: a worker holds the token of its own worker id, not what the token is derived from
WITHHELD = frozenset({"EDL_KEY_FILE", "EDL_TOKEN", "CUDA_VISIBLE_DEVICES"})

#: variables that the spec may not set: they say who the worker is and where its world is found
RESERVED = re.compile(
    r"EDL_(JOB|WORKER|NODE|SLOT|WORKER_TOKEN|AGENT_SOCKET|HELD_DIR|CHECKPOINT_URL)|EDL_TEACHER_(SERVICE|TEACHER_ID)"
    r"|HOROVOD_(ELASTIC|CONTROLLER|CPU_OPERATIONS|HOSTNAME|GLOO_RENDEZVOUS_\w+|RANK|SIZE|(LOCAL|CROSS)_(RANK|SIZE))"
)

#: backstop for sockets that an abort misses; the normal way out takes milliseconds
GLOO_TIMEOUT_S = 10
_GLOO_TIMEOUT = "HOROVOD_GLOO_TIMEOUT_SECONDS"


@dataclass(frozen=True, slots=True)
class NodeEnvironment:
    """What all workers of a node share."""

    #: the JobClient's own environment
    base: Mapping[str, str]
    #: directory of the JobClient's Python, first in the workers' PATH
    python_dir: str
    agent_socket: str
    #: network interface of the node's address; None: gloo and NCCL choose
    interface: str | None
    threads_per_slot: int
    #: where students find their services, and teachers list themselves
    zookeeper: str = ""
    zookeeper_root: str = ""
    #: by which ZooKeeper lets them
    services_token: str = field(default="", repr=False)
    #: what a login of the user that workers run as would set; empty: they run as the JobClient does
    user: Mapping[str, str] = field(default_factory=dict)


def inherited(base: Mapping[str, str]) -> dict[str, str]:
    """The part of `base` that children get."""
    return {name: value for name, value in base.items() if INHERITED.fullmatch(name) and name not in WITHHELD}


def job_environment(shared: NodeEnvironment, spec: JobSpec) -> dict[str, str]:
    """What every process of a job gets on this node: the package hook and, with more, its workers."""
    env = inherited(shared.base)
    if shared.user:  # folders of the JobClient's user are not for another
        env = {**{name: value for name, value in env.items() if not name.startswith("XDG_")}, **shared.user}
    env["PATH"] = f"{shared.python_dir}:{env['PATH']}" if env.get("PATH") else shared.python_dir
    env["PYTHONUNBUFFERED"] = "1"
    if shared.zookeeper:  # the JobClient's own, wherever it has it from
        env |= {"EDL_ZOOKEEPER": shared.zookeeper, "EDL_ZOOKEEPER_ROOT": shared.zookeeper_root}
        env[SERVICES_TOKEN_VARIABLE] = shared.services_token
    env.update({name: value for name, value in spec.env.items() if not RESERVED.fullmatch(name)})
    return env


def worker_environment(
    shared: NodeEnvironment,
    node: NodeRecord,
    planned: PlannedWorker,
    spec: JobSpec,
    token: str,
    held_dir: str | None = None,
) -> dict[str, str]:
    """The whole environment of one worker. `held_dir`: where the job's workers on this node hold their state.

    Rank, size and rendezvous address are not in it: they change with the generation and come through the gate.
    """
    threads = str(shared.threads_per_slot)
    defaults = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    defaults[_GLOO_TIMEOUT] = str(GLOO_TIMEOUT_S)
    # With the response cache Horovod agrees by an 8-byte allreduce, in the same gloo slot as the gradients. A survivor
    # whose reduction failed goes on to agree while another still sends gradients: gloo ends the process (SIGABRT,
    # "op.preamble.length <= op.nbytes"). Without it the agreement is a gather and a broadcast, in slots of their own.
    defaults["HOROVOD_CACHE_CAPACITY"] = "0"
    # on a node of CPU slots the GPUs that it may have are hidden
    defaults["CUDA_VISIBLE_DEVICES"] = str(node.gpus[planned.slot]) if node.gpus else ""
    if node.gpus:
        defaults["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML numbers them
    if spec.service is not None:
        defaults |= _teacher_defaults(node)
    if shared.interface:
        defaults["HOROVOD_GLOO_IFACE"] = defaults["NCCL_SOCKET_IFNAME"] = shared.interface
    identity = {
        "EDL_JOB": spec.job,
        "EDL_WORKER": planned.worker,
        "EDL_NODE": node.node,
        "EDL_SLOT": str(planned.slot),
        "EDL_WORKER_TOKEN": token,
        "EDL_AGENT_SOCKET": shared.agent_socket,
        "HOROVOD_HOSTNAME": node.node,
        "HOROVOD_ELASTIC": "1",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
    if spec.service is not None:
        identity["EDL_TEACHER_SERVICE"] = spec.service
        identity["EDL_TEACHER_TEACHER_ID"] = teacher_name(spec.job, planned.worker)
    if spec.checkpoint_url is not None:
        identity["EDL_CHECKPOINT_URL"] = spec.checkpoint_url
    if held_dir is not None:
        identity["EDL_HELD_DIR"] = held_dir
    return defaults | job_environment(shared, spec) | identity


def _teacher_defaults(node: NodeRecord) -> dict[str, str]:
    """Options of `edl teacher serve` that follow from the slot; a command that names them wins."""
    found = {"EDL_TEACHER_HOST": node.address, "EDL_TEACHER_PORT": "0"}
    return found | {"EDL_TEACHER_GPU_IDS": "0"} if node.gpus else found  # the one that it sees


def teacher_name(job: str, worker: str) -> str:
    """Unique in a service that several jobs serve, and at most 63 characters."""
    return f"{job[: 62 - len(worker)].rstrip('._-')}-{worker}"


def gloo_timeout_s(spec: JobSpec) -> float:
    """After how long a collective of this job fails by itself."""
    given = spec.env.get(_GLOO_TIMEOUT, "")
    return float(given) if given.isdecimal() else float(GLOO_TIMEOUT_S)


def worker_directory(spec: JobSpec, worker: str) -> str:
    """Where the command runs, relative to the directory of the job."""
    return f"{spec.pod_path}/{worker}" if spec.pod_path else "."


def hook_command(spec: JobSpec, worker: str) -> tuple[str, ...] | None:
    """The package hook with its arguments; a name without '/' is a file of the job's directory, not of PATH."""
    if spec.package_hook is None:
        return None
    hook = spec.package_hook if "/" in spec.package_hook else f"./{spec.package_hook}"
    return (hook, "-pod_id", worker)
