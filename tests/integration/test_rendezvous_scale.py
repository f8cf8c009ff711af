"""Many workers at once: a whole rendezvous of 64, and what the store keeps of a world of 256."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.rendezvous import Run, build_client, rendezvous

from edl_collective.coord.errors import VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import MAX_RECORD_BYTES, Member, Rendezvous, decode, encode
from edl_collective.coord.zk_store import ZkStore
from jobserver.local_zookeeper import LocalZooKeeper

pytestmark = pytest.mark.integration

WORKERS, PER_NODE = 64, 8


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[str]:
    with LocalZooKeeper(tmp_path) as server:
        yield server.hosts


def requests_of(ranks: int) -> int:
    """What the C++ stores of one context of `ranks` workers ask, if no GET is answered "not found"."""
    before = ranks * (ranks - 1) // 2  # rank_* of the lower ranks
    return 3 * ranks + before + 2 * ranks * (ranks - 1)  # two PUTs and a DELETE; each peer is asked for twice


@pytest.mark.timeout(90)
def test_sixty_four_workers_rendezvous_without_a_poll_or_a_second_try(hosts: str) -> None:
    run = asyncio.run(rendezvous(hosts, WORKERS, PER_NODE))
    contexts = requests_of(WORKERS) + 2 * WORKERS * requests_of(1)  # each worker is alone on its host (topology)
    assert run.requests == WORKERS + 2 * contexts, "a GET was answered before its key was there"
    assert run.retries == 0
    assert run.bytes > 2 * 2 * WORKERS * (WORKERS - 1) * (WORKERS - 1) * 136
    assert cheap(run)


def cheap(run: Run) -> bool:
    """CPU, not time: whatever else this machine does. The bounds are some ten times what a quiet machine needs."""
    return run.driver_cpu_s < 0.7 and run.proxy_most_cpu_s < 2.5


def test_the_client_is_compiled_once(tmp_path: Path) -> None:
    program = build_client(tmp_path)
    made_at = program.stat().st_mtime_ns
    assert build_client(tmp_path) == program
    assert program.stat().st_mtime_ns == made_at
    assert list(tmp_path.iterdir()) == [program]


def test_a_world_of_256_is_one_write_that_only_one_driver_wins(hosts: str) -> None:
    """With names as long as they may be, all of it fits into one record, which is compared and set as a whole."""
    members = tuple(
        Member(
            worker=f"w{10_000_000 + rank}",
            node=f"{rank // 8:063d}",
            rank=rank,
            local_rank=rank % 8,
            local_size=8,
            cross_rank=rank // 8,
            cross_size=32,
        )
        for rank in range(256)
    )
    record = Rendezvous(generation=10**9, epoch=10**6, members=members, cause="w10000255 joins " * 20)
    paths = Paths("/size")
    path = paths.rendezvous("train")
    store = ZkStore(hosts).start()
    try:
        version = store.set(path, encode(Rendezvous.EMPTY, path), None)
        data = encode(record, path)
        assert len(data) < MAX_RECORD_BYTES
        assert store.set(path, data, version) == version + 1
        with pytest.raises(VersionConflict):
            store.set(path, data, version)
        found = store.get(path)
        assert found is not None
        assert decode(found.data, Rendezvous, path) == record
    finally:
        store.close()
