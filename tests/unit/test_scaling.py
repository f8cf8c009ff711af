"""Batch policies and learning rates: the update of the global batch however it is divided, rates on samples."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl_collective.sampler import permutation, rank_steps
from edl_collective.scaling import (
    BatchScale,
    CosineLR,
    LinearWarmup,
    OneCycleLR,
    PerWorkerBatch,
    PiecewiseLR,
    Schedule,
    TotalBatch,
    lr_at,
)

STEP_DECAY = PiecewiseLR(values=(0.4, 0.04, 0.004), boundaries=(30, 60.5))
SCHEDULES: list[Schedule] = [
    STEP_DECAY,
    CosineLR(0.4, epochs=90, final_lr=0.001),
    OneCycleLR(0.02, epochs=15),
    LinearWarmup(CosineLR(0.4, epochs=90), epochs=5),
]


def test_total_keeps_the_batch_and_the_rate() -> None:
    policy = TotalBatch(256, min_local_batch=2)
    assert {policy.global_batch(world) for world in range(1, 20)} == {256}
    assert policy.rescale(BatchScale(2.0, 4.0), 1000, 3).at(5000) == 1.0


def test_per_worker_grows_batch_and_rate_with_the_world() -> None:
    policy = PerWorkerBatch(32, reference_world_size=2, warmup_samples=1000)
    assert [policy.global_batch(world) for world in (1, 2, 8)] == [32, 64, 256]
    scale = policy.rescale(None, 0, 2)
    assert scale.at(0) == 1.0
    scale = policy.rescale(scale, 10_000, 8)
    assert [scale.at(10_000 + passed) for passed in (0, 500, 1000, 99_000)] == [1.0, 2.5, 4.0, 4.0]


def test_per_worker_shrinks_at_once() -> None:
    policy = PerWorkerBatch(32, reference_world_size=1, warmup_samples=1000)
    scale = policy.rescale(policy.rescale(None, 0, 4), 500, 2)
    assert scale.at(500) == 2.0


def test_per_worker_resized_in_the_middle_of_a_warmup_goes_on_from_there() -> None:
    policy = PerWorkerBatch(32, warmup_samples=1000)
    scale = policy.rescale(policy.rescale(None, 0, 1), 0, 4)
    halfway = policy.rescale(scale, 500, 8)
    assert (halfway.at(500), halfway.at(1000), halfway.at(1500)) == (2.5, 5.25, 8.0)
    assert policy.rescale(scale, 500, 4) is scale


@given(
    worlds=st.lists(st.tuples(st.integers(1, 16), st.integers(0, 3000)), min_size=1, max_size=8),
    reference=st.integers(1, 8),
    warmup=st.integers(0, 2000),
)
def test_factor_never_exceeds_the_linear_rule(worlds: list[tuple[int, int]], reference: int, warmup: int) -> None:
    policy = PerWorkerBatch(8, reference, warmup)
    scale: BatchScale | None = None
    samples = 0
    for world, passed in worlds:
        scale = policy.rescale(scale, samples, world)
        bound = world / reference
        factors = [scale.at(samples + passed * part // 4) for part in range(5)]
        assert factors == sorted(factors)
        assert factors[0] > 0
        assert factors[-1] <= bound
        assert scale.at(samples + warmup) == bound
        samples += passed


@given(size=st.integers(1, 200), world=st.integers(1, 9), total=st.integers(2, 40))
def test_summed_losses_over_the_global_count_give_the_mean_gradient(size: int, world: int, total: int) -> None:
    """d/dw of w * x is x: what the ranks contribute, summed, is the mean over each global batch at any world size."""
    policy = TotalBatch(total, min_local_batch=2)
    order = permutation(size, 1, 0, shuffle=True)
    values = order.astype(float) ** 2
    batch = policy.global_batch(world)
    ranks = [rank_steps(order, 0, rank, world, batch, policy.min_local_batch) for rank in range(world)]
    for steps in zip(*ranks, strict=True):
        gradient = sum(float((step.indices.astype(float) ** 2).sum()) / step.global_count for step in steps)
        place = steps[0].begin
        expected = float(values[place : place + steps[0].global_count].mean())
        assert math.isclose(gradient, expected, rel_tol=1e-12)


def test_piecewise_changes_exactly_at_its_boundaries() -> None:
    size = 1_281_167
    assert lr_at(STEP_DECAY, 30 * size - 1, size) == 0.4
    assert lr_at(STEP_DECAY, 30 * size, size) == 0.04
    assert lr_at(STEP_DECAY, 61 * size, size) == 0.004
    assert lr_at(PiecewiseLR((0.1,), ()), 10**12, size) == 0.1


def test_cosine_starts_halves_and_ends() -> None:
    schedule = CosineLR(0.4, epochs=90, final_lr=0.2)
    assert [schedule.at_epoch(epoch) for epoch in (0, 45, 90, 200)] == pytest.approx([0.4, 0.3, 0.2, 0.2])


def test_one_cycle_climbs_and_falls() -> None:
    schedule = OneCycleLR(0.02, epochs=10, climb_fraction=0.25, initial_divisor=10, final_divisor=100)
    rates = [schedule.at_epoch(epoch / 10) for epoch in range(101)]
    assert rates[0] == pytest.approx(0.002)
    assert rates[25] == max(rates) == pytest.approx(0.02)
    assert rates[100] == pytest.approx(0.0002)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)


def test_warmup_joins_its_schedule_without_a_step() -> None:
    base = CosineLR(0.4, epochs=90)
    schedule = LinearWarmup(base, epochs=5, start_factor=0.1)
    assert schedule.at_epoch(0) == pytest.approx(0.04)
    assert schedule.at_epoch(2.5) == pytest.approx(base.at_epoch(2.5) * 0.55)
    assert schedule.at_epoch(5) == base.at_epoch(5)
    assert schedule.at_epoch(60) == base.at_epoch(60)


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(samples=st.integers(0, 10**8), scale=st.floats(0.1, 16))
def test_rates_are_finite_and_scale(schedule: Schedule, samples: int, scale: float) -> None:
    rate = lr_at(schedule, samples, 50_000)
    assert 0 <= rate < math.inf
    assert lr_at(schedule, samples, 50_000, scale) == rate * scale


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resize_does_not_move_the_schedule(schedule: Schedule) -> None:
    """Two runs, one resized, see the same rate wherever they have seen the same samples (counting steps does not)."""
    size = 1000

    def rates(worlds: list[int]) -> dict[int, float]:
        seen: dict[int, float] = {}
        samples = 0
        for world in worlds:
            samples += 10 * world
            seen[samples] = lr_at(schedule, samples, size)
        return seen

    steady, resized = rates([1] * 400), rates([1] * 50 + [4] * 50 + [2] * 75)
    assert len(steady.keys() & resized.keys()) == 175
    assert all(steady[samples] == rate for samples, rate in resized.items())


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: TotalBatch(0), "total"),
        (lambda: TotalBatch(1, min_local_batch=2), "total"),
        (lambda: TotalBatch(8, min_local_batch=0), "min_local_batch"),
        (lambda: TotalBatch(8).global_batch(0), "world_size"),
        (lambda: PerWorkerBatch(0), "per_worker"),
        (lambda: PerWorkerBatch(1, min_local_batch=2), "per_worker"),
        (lambda: PerWorkerBatch(8, reference_world_size=0), "reference_world_size"),
        (lambda: PerWorkerBatch(8, warmup_samples=-1), "warmup_samples"),
        (lambda: PerWorkerBatch(8).global_batch(0), "world_size"),
        (lambda: PiecewiseLR((0.1,), (30,)), "values"),
        (lambda: PiecewiseLR((0.1, -0.1), (30,)), "values"),
        (lambda: PiecewiseLR((0.1, 0.2, 0.3), (30, 30)), "boundaries"),
        (lambda: PiecewiseLR((0.1, 0.2), (0,)), "boundaries"),
        (lambda: PiecewiseLR((0.1, 0.2), (math.inf,)), "boundaries"),
        (lambda: CosineLR(math.nan, 90), "base_lr"),
        (lambda: CosineLR(0.1, 0), "epochs"),
        (lambda: CosineLR(0.1, 90, final_lr=-1), "final_lr"),
        (lambda: OneCycleLR(-1, 15), "max_lr"),
        (lambda: OneCycleLR(1, math.inf), "epochs"),
        (lambda: OneCycleLR(1, 15, climb_fraction=1), "climb_fraction"),
        (lambda: OneCycleLR(1, 15, initial_divisor=0.5), "initial_divisor"),
        (lambda: OneCycleLR(1, 15, final_divisor=0), "final_divisor"),
        (lambda: LinearWarmup(STEP_DECAY, 0), "epochs"),
        (lambda: LinearWarmup(STEP_DECAY, 5, start_factor=2), "start_factor"),
        (lambda: lr_at(STEP_DECAY, -1, 10), "samples_seen"),
        (lambda: lr_at(STEP_DECAY, 1, 0), "dataset_size"),
    ],
)
def test_bad_values_are_refused_by_name(build: object, names: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=rf"^{names} must be"):
        build()
