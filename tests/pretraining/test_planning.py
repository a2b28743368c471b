from dataclasses import replace

import pytest

from arbiters.errors import InvalidError
from soma_agents.pretraining import planning
from soma_agents.pretraining.planning import Crew, Machine, nearest, plan, require
from soma_agents.pretraining.recipe import SHOWCASE, parameters, preset, with_context, with_experts

V1 = preset("v1").but(precision="bfloat16")
MACHINE = Machine(products=4e11, passes=1e10, memory=16 << 30, cores=2)


def test_a_plan_counts_what_the_model_has():
    found = plan(V1, MACHINE)

    assert found.parameters == parameters(V1.model)
    assert found.weights > 12 * found.parameters
    assert found.fits


def test_larger_takes_more_of_everything():
    small, large = plan(SHOWCASE, MACHINE), plan(V1, MACHINE)

    assert large.memory > small.memory
    assert large.tokens_per_second < small.tokens_per_second


def test_recomputing_trades_time_for_memory():
    plain, thrifty = plan(V1, MACHINE), plan(replace(V1, recompute=True), MACHINE)

    assert thrifty.activations < plain.activations / 3
    assert thrifty.seconds > plain.seconds


def test_starting_operations_takes_its_time_in_each_step():
    slow = replace(MACHINE, starts=lambda _: 0.5)

    assert plan(SHOWCASE, slow).seconds == pytest.approx(
        plan(SHOWCASE, MACHINE).seconds + 0.5 * SHOWCASE.steps
    )


def test_this_machine_takes_time_to_start_operations(monkeypatch):
    monkeypatch.setattr(planning, "MEASURED_SECONDS", 0.05)

    assert planning.measured("float32").starts(SHOWCASE.settled()) > 0


def test_more_blocks_and_micro_batches_start_more_operations(monkeypatch):
    monkeypatch.setattr(planning, "MEASURED_SECONDS", 0.01)
    # Seconds of passes and of the optimiser, not measured: a busy machine would decide.
    monkeypatch.setattr(planning, "_narrow_step", lambda _, model: (model.layers, model.layers / 2))
    starts = planning.measured("float32").starts

    deep = starts(replace(SHOWCASE, model=replace(SHOWCASE.model, layers=9)))
    often = starts(replace(SHOWCASE, micro_rows=2))

    for more in (deep, often):
        assert more > 1.3 * starts(SHOWCASE)


def test_what_cannot_fit_is_refused_with_the_nearest_that_does():
    cramped = replace(MACHINE, memory=3 << 30)

    with pytest.raises(
        InvalidError, match=r"v1 .* needs .* GiB .*the nearest that fits: --micro-rows"
    ):
        require(replace(V1, micro_rows=64), cramped)


def test_the_nearest_that_fits_fits():
    cramped = replace(MACHINE, memory=3 << 30)

    said = nearest(replace(V1, micro_rows=64), cramped)

    rows = int(said.split()[1])
    assert plan(replace(V1, micro_rows=rows), cramped).fits
    assert not plan(replace(V1, micro_rows=2 * rows), cramped).fits


def test_where_nothing_fits_that_is_said():
    with pytest.raises(InvalidError, match="nothing of its kind fits"):
        require(V1, replace(MACHINE, memory=1 << 20))


def test_long_contexts_are_planned_without_being_allocated():
    short, long = plan(V1, MACHINE), plan(with_context(V1, 131_072), MACHINE)

    assert long.parameters == short.parameters
    assert long.fits
    assert long.activations > 2 << 30
    assert long.tokens_per_second < short.tokens_per_second / 5


def test_experts_take_memory_and_little_time():
    plain, mixture = plan(V1, MACHINE), plan(with_experts(V1, 8), MACHINE)

    assert mixture.parameters == parameters(with_experts(V1, 8).model)
    assert mixture.active < 1.01 * plain.active
    assert mixture.weights > 2.5 * plain.weights
    assert plain.tokens_per_second / 2 < mixture.tokens_per_second < plain.tokens_per_second


def test_a_parted_model_takes_less_of_each_workers_memory():
    alone = plan(V1, MACHINE)

    copied, parted = (plan(V1, MACHINE, Crew(4, sharded=kind)) for kind in (False, True))

    assert copied.optimiser < alone.optimiser / 2
    assert copied.weights == alone.weights
    assert parted.weights < copied.weights / 2
    assert parted.memory < copied.memory < alone.memory


def test_workers_on_one_machine_share_its_memory():
    half = replace(MACHINE, memory=2 * plan(V1, MACHINE, Crew(2)).memory)

    with pytest.raises(InvalidError, match=r"GiB of memory for each of 2 workers \("):
        require(V1, half, Crew(2, here=2))

    assert require(V1, half, Crew(2, here=1)).fits
