"""What Horovod is told about who shares a host with whom: nothing, unless a job asks for it. [pure]

Horovod connects its members once as a whole, once per host and once across hosts, and does all of that twice (for its
"global process set"). Only its hierarchical operations use the last two. So each worker is told that it is alone on its
host, and these connections have one member and cost nothing. Two of six meshes are left.

All members of a world must tell Horovod the same, so it depends on nothing but the environment that a job's spec gives.
"""

from collections.abc import Mapping

from edl_collective.messages import Assigned

#: not allowed in names of nodes and workers (paths.NAME_PATTERN), and harmless in a URL
_ALONE = "~"
#: operations that need to know the hosts
_HIERARCHICAL = ("HOROVOD_HIERARCHICAL_ALLREDUCE", "HOROVOD_HIERARCHICAL_ALLGATHER", "HOROVOD_TORUS_ALLREDUCE")


def needs_hosts(environ: Mapping[str, str]) -> bool:
    """Whether the job has asked for operations that distinguish hosts."""
    return any(environ.get(name, "0") not in ("", "0") for name in _HIERARCHICAL)


def place_for_horovod(place: Assigned, node: str, worker: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that Horovod's C++ reads at its init."""
    alone = not needs_hosts(environ)
    local_rank, local_size, cross_rank, cross_size = (
        ALONE_PLACE if alone else (place.local_rank, place.local_size, place.cross_rank, place.cross_size)
    )
    return {
        "HOROVOD_HOSTNAME": f"{worker}{_ALONE}" if alone else node,
        "HOROVOD_RANK": str(place.rank),
        "HOROVOD_SIZE": str(place.size),
        "HOROVOD_LOCAL_RANK": str(local_rank),
        "HOROVOD_LOCAL_SIZE": str(local_size),
        "HOROVOD_CROSS_RANK": str(cross_rank),
        "HOROVOD_CROSS_SIZE": str(cross_size),
    }


#: local rank and size, cross rank and size of who is alone. (A cross size of N would be true, and would be connected.)
ALONE_PLACE = (0, 1, 0, 1)


def asks_alone(key: str) -> bool:
    """Whether the key by which Horovod asks for its place, "<host>:<local rank>", comes from one that is alone."""
    return key.partition(":")[0].endswith(_ALONE)
