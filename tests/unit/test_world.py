"""The driver's rules, on whole jobs without processes."""

import pytest
from world_sim import Cluster, members_of, pass_time

from edl_collective.driver.world import Config
from edl_collective.messages import AbortGeneration


def started(want: dict[str, int], config: Config | None = None) -> Cluster:
    cluster = Cluster(config=config)
    cluster.scale(want, "start")
    cluster.settle()
    cluster.check()
    return cluster


class TestRules:
    def test_first_world_holds_all_planned_workers(self) -> None:
        cluster = started({"a": 2, "b": 1})
        assert members_of(cluster) == ["w1", "w2", "w3"]
        assert (cluster.record.generation, cluster.record.cause) == (1, "start")

    def test_scale_up_keeps_the_survivors_lowest_on_their_node(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.scale({"a": 2, "b": 2}, "scale 2 to 4 (schedule, epoch 3)")
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w1", "w3", "w2", "w4"]
        assert cluster.record.generation == 2, "both newcomers join in one generation"
        assert cluster.record.cause == "plan: scale 2 to 4 (schedule, epoch 3)"
        assert cluster.record.plan_revision == cluster.plan.revision

    def test_scale_down_lets_the_removed_leave(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.scale({"a": 1, "b": 1})
        cluster.settle()
        cluster.check()
        assert cluster.workers["w2"].state == "left"
        assert cluster.record.cause == "plan: scale"

    def test_a_killed_worker_is_named_in_the_cause(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.kill_worker("w3")
        while cluster.record.generation == 1:
            cluster.choices()[0]()
        assert cluster.record.cause == "worker w3 killed by SIGKILL"
        assert members_of(cluster) == ["w1", "w2", "w4"], "survivors do not wait for the replacement"

    def test_a_lost_node_is_named_in_the_cause(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.lose_node("b")
        cluster.replace_dead()
        pass_time(cluster)
        while cluster.record.generation == 1:
            cluster.choices()[0]()
        assert cluster.record.cause == "node b is gone"
        assert members_of(cluster) == ["w1", "w2"]
        assert cluster.now_s == cluster.config.answer_grace_s, "the plan of the leader has said so"

    def test_a_node_is_lost_in_the_end_though_nobody_leads(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.lose_node("b")
        assert not cluster.choices()
        assert cluster.driver is not None
        assert cluster.driver.reason == "waiting for the JobClient of node b"
        assert cluster.driver.wake_at == cluster.config.absence_grace_s
        cluster.settle()
        cluster.check()

    def test_an_outage_that_ends_all_sessions_ends_no_world(self) -> None:
        cluster = started({"a": 2, "b": 2})
        for node in ("a", "b"):
            cluster.hide_node(node)
        for _ in range(20):  # they are asked again and again, and answer
            while cluster.choices():
                cluster.choices()[0]()
            pass_time(cluster)
        assert cluster.now_s > 5 * cluster.config.answer_grace_s
        cluster.show_nodes()
        cluster.settle()
        cluster.check()
        assert cluster.record.generation == 1

    def test_a_driver_that_starts_in_an_outage_waits_for_the_nodes(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.crash_driver()
        for node in ("a", "b"):
            cluster.hide_node(node)
        cluster.start_driver()
        assert cluster.driver is not None
        assert cluster.driver.reason == "waiting for the JobClient of node a, b"
        cluster.show_nodes()
        cluster.settle()
        cluster.check()
        assert (cluster.record.generation, cluster.record.epoch) == (1, 2)

    def test_a_worker_killed_in_an_outage_is_a_loss_and_nobody_else(self) -> None:
        cluster = started({"a": 2, "b": 2})
        for node in ("a", "b"):
            cluster.hide_node(node)
        cluster.kill_worker("w4")
        while cluster.choices():
            cluster.choices()[0]()
        assert members_of(cluster) == ["w1", "w2", "w3"]
        assert cluster.record.cause == "worker w4 killed by SIGKILL"

    def test_a_connected_node_that_is_missing_and_silent_is_lost(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.hide_node("b")
        cluster.nodes["b"].from_driver.clear()  # the question is not heard: its JobClient hangs
        assert cluster.driver is not None
        assert cluster.driver.wake_at == cluster.config.absence_grace_s, "the leader is to judge"
        cluster.scale({"a": 1, "b": 0}, "w2 was lost with node b")
        cluster.nodes["b"].from_driver.clear()
        assert AbortGeneration(generation=1) not in cluster.nodes["a"].from_driver
        pass_time(cluster)
        assert cluster.now_s == cluster.config.answer_grace_s
        assert AbortGeneration(generation=1) in cluster.nodes["a"].from_driver

    def test_a_node_that_only_the_leader_has_lost_leaves_at_a_step_boundary(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.hide_node("b")
        cluster.scale({"a": 1, "b": 0}, "w2 was lost with node b")
        while cluster.choices():
            cluster.choices()[0]()
        assert members_of(cluster) == ["w1"]
        assert cluster.workers["w2"].state == "left"
        assert cluster.record.cause == "plan: w2 was lost with node b"

    @pytest.mark.parametrize("fault", ["its connection blinks", "the driver restarts"])
    def test_such_a_node_is_not_cut_off_while_it_is_not_connected_for_a_moment(self, fault: str) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.hide_node("b")
        cluster.now_s = 3.0  # the leader takes its time
        if fault == "the driver restarts":
            cluster.crash_driver()
            cluster.scale({"a": 1, "b": 0}, "w2 was lost with node b")
            cluster.start_driver()
        else:
            cluster.disconnect("b")
            cluster.scale({"a": 1, "b": 0}, "w2 was lost with node b")
        assert AbortGeneration(generation=1) not in cluster.nodes["a"].from_driver
        while cluster.choices():
            cluster.choices()[0]()
        assert members_of(cluster) == ["w1"]
        assert cluster.workers["w2"].state == "left"
        assert cluster.record.cause == "plan: w2 was lost with node b"

    def test_a_node_that_came_back_without_a_worker_is_not_waited_for(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.lose_node("a")
        cluster.return_node("a")
        cluster.scale({"b": 2})
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w2", "w3"]

    def test_nobody_left_restarts_from_fresh_workers(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.kill_worker("w1")
        cluster.kill_worker("w2")
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w3", "w4"]
        assert cluster.record.cause.startswith("restart: worker w1 killed by SIGKILL")

    def test_a_collective_that_failed_without_a_loss_forms_the_same_world_again(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.leave_by_itself("w2")
        cluster.settle()
        cluster.check()
        assert cluster.record.generation == 2
        assert "no loss known" in cluster.record.cause

    def test_suspicion_waits_for_its_grace(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.leave_by_itself("w2")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w1"].state == "running"
        assert cluster.driver is not None
        assert cluster.driver.wake_at == pytest.approx(cluster.now_s + cluster.config.suspect_grace_s)

    def test_below_min_np_holds_and_resumes(self) -> None:
        cluster = started({"a": 1, "b": 1}, Config(min_np=2))
        cluster.lose_node("b")
        cluster.settle()
        assert cluster.driver is not None
        assert "holding with 1 of at least 2" in cluster.driver.reason
        assert cluster.record.generation == 1
        cluster.return_node("b")
        cluster.scale({"a": 1, "b": 1})
        cluster.settle()
        cluster.check()

    def test_a_finished_worker_is_no_loss(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.finish("w1")
        cluster.kill_worker("w1", "exit code 0")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w2"].state == "running"
        assert cluster.record.generation == 1
        cluster.finish("w2")
        cluster.kill_worker("w2", "exit code 0")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.record.generation == 1

    def test_a_worker_killed_while_another_has_finished_leaves_the_rest_a_world(self) -> None:
        cluster = started({"a": 2, "b": 1}, Config(min_np=2))
        cluster.finish("w1")
        cluster.kill_worker("w1", "exit code 0")
        cluster.kill_worker("w2")
        while cluster.choices():
            cluster.choices()[0]()
        assert members_of(cluster) == ["w3"]
        assert cluster.workers["w3"].state == "running"

    def test_a_new_attempt_forms_a_world_though_a_worker_of_the_former_had_finished(self) -> None:
        cluster = started({"a": 1, "b": 1}, Config(min_np=2))
        cluster.finish("w2")
        cluster.kill_worker("w2", "exit code 0")
        cluster.kill_worker("w1")
        cluster.scale({"a": 1, "b": 1}, "rank 0 did not finish: attempt 2")
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w3", "w4"]
        assert cluster.record.cause == "restart: worker w1 killed by SIGKILL"

    def test_a_new_attempt_takes_out_who_was_too_slow_to_finish(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.finish("w2")
        cluster.kill_worker("w2", "exit code 0")
        cluster.scale({}, "finish_timeout_s")
        cluster.scale({"a": 1, "b": 1}, "rank 0 did not finish: attempt 2")
        cluster.settle()
        cluster.check()
        assert cluster.workers["w1"].state == "left"

    def test_a_newcomer_does_not_begin_again_when_all_have_finished(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.scale({"a": 2, "b": 1})
        for worker in ("w1", "w2"):
            cluster.finish(worker)
            cluster.kill_worker(worker, "exit code 0")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w3"].state == "gate"
        assert cluster.record.generation == 1

    @pytest.mark.parametrize("kills", [True, False])
    def test_a_worker_killed_in_init_does_not_keep_the_others_there(self, kills: bool) -> None:
        cluster = Cluster()
        cluster.kills = kills
        cluster.scale({"a": 2, "b": 1}, "start")
        while "init" not in {w.state for w in cluster.workers.values()}:
            cluster.choices()[0]()
        cluster.kill_worker(next(w.name for w in cluster.workers.values() if w.state == "init"))
        cluster.settle()
        cluster.check()

    def test_stopping_lets_everybody_leave(self) -> None:
        cluster = started({"a": 2, "b": 1})
        cluster.scale({}, "stop")
        cluster.settle()
        assert {w.state for w in cluster.workers.values()} == {"left"}
        assert cluster.record.generation == 1

    def test_a_standby_that_dies_costs_nothing(self) -> None:
        cluster = started({"a": 1})
        cluster.scale({"a": 2})
        cluster.kill_worker("w2")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w1"].state == "running"
        assert cluster.record.generation == 1

    def test_first_world_forms_without_the_missing_after_its_grace(self) -> None:
        cluster = Cluster(config=Config(min_np=1, form_grace_s=10.0))
        cluster.scale({"a": 1, "b": 1}, "start")
        cluster.workers["w2"].state = "packaging"
        cluster.settle()
        assert cluster.now_s == pytest.approx(10.0)
        assert members_of(cluster) == ["w1"]

    def test_a_newcomer_waits_a_little_for_the_other(self) -> None:
        cluster = started({"a": 1})
        cluster.scale({"a": 3})
        cluster.workers["w3"].state = "packaging"
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w1"].state == "running"
        cluster.workers["w3"].state = "starting"
        cluster.settle()
        cluster.check()
        assert cluster.record.generation == 2
