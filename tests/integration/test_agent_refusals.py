"""Attacks on a JobClient by somebody who can write to ZooKeeper: nothing is run that nobody with the key asked for."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from agent_cluster import PATHS, SIGNER, Cluster, running_agent, until
from msgspec.structs import replace

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import JobSpec, JobStatus, Outcome, Phase, WorkerState, decode, encode
from edl_collective.coord.signing import SpecSigner

pytestmark = pytest.mark.integration


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_agent(tmp_path) as found:
        yield found


def write(cluster: Cluster, path: str, data: bytes) -> None:
    found = cluster.server.get(path)
    cluster.server.set(path, data, found.version if found else None)


def harmful(proof: Path) -> JobSpec:
    """Its command, its package hook, and a variable that a shell would read, would leave `proof`."""
    script = f"touch {proof}"
    proof.with_suffix(".sh").write_text(f"#!/bin/sh\n{script}\n")
    return JobSpec(
        job="j", command=("sh", "-c", script), package_hook=str(proof.with_suffix(".sh")), env={"ENV": script}
    )


@pytest.mark.parametrize("how", ["unsigned", "another key", "of another job", "changed"])
async def test_a_spec_that_is_not_signed_is_never_executed(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    spec, path = harmful(tmp_path / "proof"), PATHS.spec("j")
    forged = {
        "unsigned": encode(spec),
        "another key": SpecSigner(ClusterKey(b"of an attacker, 16 bytes or more")).sign(path, spec),
        "of another job": SIGNER.sign(PATHS.spec("k"), replace(spec, job="k")),
        "changed": SIGNER.sign(path, replace(spec, command=("true",))).replace(b'"true"', b'"sh","-c","touch proof"'),
    }
    with caplog.at_level(logging.ERROR, logger="jobclient"):
        write(cluster, path, forged[how])
        cluster.plan("w1")
        await until(lambda: "is not signed with the cluster key" in caplog.text)
        # Its next turn shows that it has seen the plan: a job that is signed, written last, is started.
        assert cluster.worker("w1") is None
        write(cluster, path, SIGNER.sign(path, JobSpec(job="j", command=("true",))))
        assert (await cluster.state("w1", WorkerState.EXITED)).outcome is Outcome.FINISHED
    assert not (tmp_path / "proof").exists()
    assert caplog.text.count("is not signed with the cluster key") == 1


async def test_a_running_job_whose_spec_is_overwritten_runs_nothing_new(cluster: Cluster, tmp_path: Path) -> None:
    cluster.submit()
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    found = cluster.server.get(PATHS.spec("j"))
    assert found is not None
    forged = replace(harmful(tmp_path / "proof"), submitted_at=decode(found.data, JobSpec).submitted_at)
    write(cluster, PATHS.spec("j"), encode(forged))
    cluster.plan("w1", "w2")
    await cluster.state("w1", WorkerState.EXITED)  # as if the job had been removed
    assert cluster.worker("w2") is None
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("deleted", [False, True], ids=["changed since", "deleted since"])
async def test_a_spec_that_was_signed_once_is_not_executed_again(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, deleted: bool
) -> None:
    path, proof = PATHS.spec("j"), tmp_path / "proof"
    old, new = harmful(proof), replace(harmful(proof), command=("true",), package_hook=None, env={}, submitted_at=5.0)
    write(cluster, path, SIGNER.sign(path, old))
    cluster.put(PATHS.status("j"), JobStatus(phase=Phase.PENDING, reason="seen", since=0.0))
    await until(lambda: "j" in cluster.agent._snapshot.jobs and cluster.agent._snapshot.jobs["j"].status is not None)
    if deleted:
        cluster.server.delete(path)
        await until(lambda: cluster.agent._snapshot.jobs["j"].spec is None)
    else:
        write(cluster, path, SIGNER.sign(path, new))
        await until(lambda: cluster.agent._snapshot.jobs["j"].spec == new)
    with caplog.at_level(logging.ERROR, logger="jobclient"):
        write(cluster, path, SIGNER.sign(path, old))
        cluster.plan("w1")
        await until(lambda: "is an older spec of this job" in caplog.text)
        assert cluster.worker("w1") is None
        write(cluster, path, SIGNER.sign(path, replace(new, submitted_at=6.0)))
        assert (await cluster.state("w1", WorkerState.EXITED)).outcome is Outcome.FINISHED
    assert not proof.exists()


@pytest.mark.parametrize("worker", ["../../../w1", "/tmp/w1", "a\0b", "..", ""])
async def test_a_plan_names_no_place_outside_the_directories(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, worker: str
) -> None:
    cluster.submit(pod_path="pods")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    found = cluster.server.get(PATHS.plan("j"))
    assert found is not None
    named = msgspec.json.encode(worker)
    with caplog.at_level(logging.ERROR, logger="jobclient"):
        write(cluster, PATHS.plan("j"), found.data.replace(b'["w1","a",0]', b'["w1","a",0],[' + named + b',"a",1]'))
        await until(lambda: "cannot name a worker" in caplog.text)
    record = cluster.worker("w1")
    assert record is not None
    assert record.state is WorkerState.STANDBY
