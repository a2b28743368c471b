import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.supervision import (
    CoreShares,
    Fits,
    GiveUp,
    Restart,
    RestartRules,
    TooLarge,
    fits,
    restart,
    share_cores,
)

RULES = RestartRules()
GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "training", "engine", "trainer"),
    [
        ([0], False, (0,), ()),
        ([0], True, (0,), (0,)),
        ([0, 1], False, (0, 1), ()),
        ([0, 1], True, (0,), (1,)),
        ([5, 2, 9], True, (2, 5), (9,)),
        (range(8), True, (0, 1, 2, 3), (4, 5, 6, 7)),
    ],
)
def test_the_engine_has_all_cores_when_idle_and_the_larger_half_while_training(
    cores, training, engine, trainer
):
    assert share_cores(cores, training=training) == CoreShares(engine, trainer)


@given(st.sets(st.integers(0, 300), min_size=2))
def test_no_core_is_shared_or_left_idle_while_training(cores):
    shares = share_cores(list(cores), training=True)

    assert {*shares.engine, *shares.trainer} == cores
    assert not set(shares.engine) & set(shares.trainer)
    assert shares.trainer


def test_a_machine_without_cores_is_refused():
    with pytest.raises(ValueError, match="at least one core"):
        share_cores([], training=False)


def test_what_was_ready_is_started_again_at_once():
    assert restart(0, RULES) == Restart(0, "it was ready before")


def test_the_wait_doubles_with_every_failed_start_up_to_the_longest():
    waits = [restart(failures, RULES).wait_s for failures in range(1, 10)]

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_process_that_does_not_start_any_more_is_given_up_with_a_reason():
    assert isinstance(restart(10, RULES), Restart)

    decision = restart(11, RULES)

    assert isinstance(decision, GiveUp)
    assert "11 starts in a row failed" in decision.because


def test_a_job_that_leaves_the_reserve_free_may_start():
    decision = fits(predicted=2 * GIB, available=3 * GIB, reserve=GIB)

    assert decision == Fits("2.00 GiB predicted, 3.00 GiB available, 1.00 GiB kept free")


def test_a_job_that_does_not_is_told_by_how_much():
    decision = fits(predicted=2 * GIB + GIB // 2, available=3 * GIB, reserve=GIB)

    assert isinstance(decision, TooLarge)
    assert decision.because.startswith("0.50 GiB too little memory")
