"""What a process learns from its environment."""

import pytest

from edl_collective.context import Launcher, Membership, read_context

UNDER_JOBCLIENT = {
    "EDL_AGENT_SOCKET": "/run/agent.sock",
    "EDL_JOB": "j",
    "EDL_WORKER": "w1",
    "EDL_NODE": "a",
    "EDL_SLOT": "1",
    "EDL_WORKER_TOKEN": "t",
    "HOROVOD_ELASTIC": "1",
}


def test_alone() -> None:
    context = read_context({})
    assert context.launcher is Launcher.FIXED
    assert (context.membership, context.device_index, context.threads, context.checkpoint_url) == (None, 0, None, None)


def test_under_a_jobclient_the_slot_sees_one_device() -> None:
    context = read_context({**UNDER_JOBCLIENT, "OMP_NUM_THREADS": "2", "EDL_CHECKPOINT_URL": "hdfs://nn/ck"})
    assert context.launcher is Launcher.JOBCLIENT
    assert context.membership == Membership("j", "w1", "a", 1, "t", "/run/agent.sock")
    assert (context.device_index, context.threads, context.checkpoint_url) == (0, 2, "hdfs://nn/ck")


def test_under_elastic_horovodrun() -> None:
    environ = {"HOROVOD_ELASTIC": "1", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1", "HOROVOD_LOCAL_RANK": "3"}
    context = read_context(environ)
    assert context.launcher is Launcher.HOROVODRUN_ELASTIC
    assert context.device_index == 3


@pytest.mark.parametrize("variable", ["HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_under_a_fixed_launcher(variable: str) -> None:
    context = read_context({variable: "1"})
    assert context.launcher is Launcher.FIXED
    assert context.device_index == 1


@pytest.mark.parametrize("missing", ["EDL_JOB", "EDL_WORKER", "EDL_NODE", "EDL_SLOT", "EDL_WORKER_TOKEN"])
def test_half_an_environment_names_what_is_missing(missing: str) -> None:
    environ = {name: value for name, value in UNDER_JOBCLIENT.items() if name != missing}
    with pytest.raises(ValueError, match=missing):
        read_context(environ)


def test_a_number_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="OMP_NUM_THREADS is 'many'"):
        read_context({"OMP_NUM_THREADS": "many"})


@pytest.mark.parametrize("variable", ["HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD", "HOROVOD_AUTOTUNE"])
def test_what_horovod_does_not_survive_is_refused_in_elastic_jobs_only(variable: str) -> None:
    with pytest.raises(ValueError, match=f"{variable} is '5'"):
        read_context({**UNDER_JOBCLIENT, variable: "5"})
    with pytest.raises(ValueError, match=variable):
        read_context({"HOROVOD_ELASTIC": "1", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "h", variable: "5"})
    assert read_context({variable: "5"}).launcher is Launcher.FIXED


@pytest.mark.parametrize("share", ["-0.1", "1.5", "much", "nan"])
def test_a_share_is_a_number_from_0_to_1(share: str) -> None:
    with pytest.raises(ValueError, match="EDL_HELD_SHARE"):
        read_context({**UNDER_JOBCLIENT, "EDL_HELD_SHARE": share})


@pytest.mark.parametrize(("text", "on"), [("", True), ("1", True), ("0", False)])
def test_gloos_loops_can_be_left_alone(text: str, on: bool) -> None:
    membership = read_context({**UNDER_JOBCLIENT, "EDL_GLOO_LOOPS": text}).membership
    assert membership is not None
    assert membership.gloo_loops is on


def test_a_switch_is_0_or_1() -> None:
    with pytest.raises(ValueError, match="EDL_GLOO_LOOPS is 'off'"):
        read_context({**UNDER_JOBCLIENT, "EDL_GLOO_LOOPS": "off"})


def test_a_worker_may_have_a_folder_in_memory() -> None:
    membership = read_context({**UNDER_JOBCLIENT, "EDL_HELD_DIR": "/dev/shm/x", "EDL_HELD_SHARE": "0.25"}).membership
    assert membership is not None
    assert (membership.held_dir, membership.held_share) == ("/dev/shm/x", 0.25)
