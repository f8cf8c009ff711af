"""What Horovod is told about hosts."""

import pytest

from edl_collective.messages import Assigned
from edl_collective.topology import asks_alone, needs_hosts, place_for_horovod

HOSTS = ("LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
PLACE = Assigned(
    generation=3, epoch=1, rank=5, size=8, local_rank=1, local_size=4, cross_rank=1, cross_size=2, rendezvous="r"
)


def test_each_worker_is_alone_on_its_host() -> None:
    told = place_for_horovod(PLACE, "node-a", "w7", {})
    assert (told["HOROVOD_RANK"], told["HOROVOD_SIZE"]) == ("5", "8")
    assert [told[f"HOROVOD_{name}"] for name in ("LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")] == list(
        "0101"
    )
    assert asks_alone(f"{told['HOROVOD_HOSTNAME']}:{told['HOROVOD_LOCAL_RANK']}")
    assert told["HOROVOD_HOSTNAME"] != place_for_horovod(PLACE, "node-a", "w8", {})["HOROVOD_HOSTNAME"]


@pytest.mark.parametrize(
    "name", ["HOROVOD_HIERARCHICAL_ALLREDUCE", "HOROVOD_HIERARCHICAL_ALLGATHER", "HOROVOD_TORUS_ALLREDUCE"]
)
def test_a_job_with_hierarchical_operations_is_told_the_truth(name: str) -> None:
    told = place_for_horovod(PLACE, "node-a", "w7", {name: "1"})
    assert told["HOROVOD_HOSTNAME"] == "node-a"
    assert [told[f"HOROVOD_{name}"] for name in ("LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")] == list(
        "1412"
    )
    assert not asks_alone("node-a:1")
    assert not needs_hosts({name: "0"})
