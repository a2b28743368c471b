import random
import time
from itertools import pairwise
from math import inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ville.means import BettingCS

from policies.statistics import (
    confidence_sequence,
    difference_of_means,
    median_interval,
    spend,
)

ALPHA = 0.05
RUNS = 300
LOOKS = 50
bounded = st.lists(st.floats(-1, 1), max_size=80)


# --- error over many candidates ------------------------------------------------------------


def test_all_candidates_ever_together_stay_within_the_error():
    total = sum(spend(ALPHA, ordinal) for ordinal in range(1, 10_000))

    assert 0.999 * ALPHA < total < ALPHA


def test_later_candidates_must_show_more():
    assert spend(ALPHA, 1) == pytest.approx(0.0304, abs=1e-4)
    assert spend(ALPHA, 2) == pytest.approx(spend(ALPHA, 1) / 4)


def test_there_is_no_candidate_before_the_first():
    with pytest.raises(ValueError, match="ordinal 0"):
        spend(ALPHA, 0)


# --- the confidence sequence ---------------------------------------------------------------


@given(xs=bounded)
def test_an_interval_lies_within_the_bounds(xs):
    found = confidence_sequence(xs, low=-1, high=1, alpha=ALPHA)

    assert -1 <= found.low <= found.high <= 1
    assert found.n == len(xs)


@given(seed=st.integers(), mean=st.floats(-1, 1), spread=st.floats(0, 2))
def test_a_value_once_excluded_never_comes_back(seed, mean, spread):
    draw = random.Random(seed)
    xs = [min(max(draw.gauss(mean, spread), -1), 1) for _ in range(60)]

    found = [confidence_sequence(xs[:n], low=-1, high=1, alpha=1e-6) for n in range(0, len(xs), 5)]

    for earlier, later in pairwise(found):
        assert earlier.low - 1e-6 <= later.low <= later.high <= earlier.high + 1e-6


@given(xs=bounded)
def test_mirrored_observations_give_the_mirrored_interval(xs):
    found = confidence_sequence(xs, low=-1, high=1, alpha=ALPHA)
    mirrored = confidence_sequence([-x for x in xs], low=-1, high=1, alpha=ALPHA)

    assert mirrored.low == pytest.approx(-found.high, abs=1e-5)
    assert mirrored.high == pytest.approx(-found.low, abs=1e-5)


@given(xs=st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_a_stricter_level_is_never_narrower_at_the_first_look(xs):
    first = xs[:1]
    loose = confidence_sequence(first, low=0, high=1, alpha=0.5)
    strict = confidence_sequence(first, low=0, high=1, alpha=0.001)

    assert strict.low <= loose.low + 1e-9
    assert strict.high >= loose.high - 1e-9


def test_a_constant_is_found():
    found = confidence_sequence([0.3] * 500, low=-1, high=1, alpha=ALPHA)

    assert found.estimate == pytest.approx(0.3)
    assert 0.25 < found.low < 0.3 < found.high < 0.35


def test_an_interval_stays_an_interval_when_the_mean_drifts():
    found = confidence_sequence([-1.0] * 200 + [1.0] * 2000, low=-1, high=1, alpha=ALPHA)

    assert found.low <= found.high


@pytest.mark.parametrize(("mean", "spread"), [(0.1, 0.3), (-0.4, 0.1), (0.0, 1.0), (0.9, 0.5)])
@pytest.mark.parametrize("n", [1, 10, 200])
def test_it_equals_an_independent_implementation(mean, spread, n):
    draw = random.Random(n)
    xs = [min(max(draw.gauss(mean, spread), -1), 1) for _ in range(n)]

    found = confidence_sequence(xs, low=-1, high=1, alpha=ALPHA)

    peer = BettingCS(bounds=(-1, 1), alpha=ALPHA, grid=4001).fit(np.array(xs)).interval()
    assert (found.low, found.high) == pytest.approx(peer, abs=2 / 4000 + 1e-6)


def miss_rate(interval_at_every_n):
    """Share of runs in which the truth is missed at any of the looks."""
    draw = random.Random(7)
    truth = 0.2
    missed = 0
    for _ in range(RUNS):
        xs = [1.0 if draw.random() < truth else 0.0 for _ in range(LOOKS)]
        missed += any(not low <= truth <= high for low, high in interval_at_every_n(xs))
    return missed / RUNS


def test_looking_after_every_observation_misses_no_more_often_than_declared():
    def sequence(xs):
        for n in range(1, LOOKS + 1):
            found = confidence_sequence(xs[:n], low=0, high=1, alpha=ALPHA)
            yield found.low, found.high

    assert miss_rate(sequence) <= ALPHA


def test_a_fixed_size_interval_looked_at_again_and_again_misses_too_often():
    def normal(xs):
        for n in range(10, LOOKS + 1):
            mean = sum(xs[:n]) / n
            radius = 1.96 * sqrt(max(mean * (1 - mean), 1e-9) / n)
            yield mean - radius, mean + radius

    assert miss_rate(normal) > 2 * ALPHA


def test_two_thousand_observations_take_less_than_a_tenth_of_a_second():
    draw = random.Random(3)
    xs = [draw.uniform(-1, 1) for _ in range(2000)]

    began = time.process_time()
    confidence_sequence(xs, low=-1, high=1, alpha=ALPHA)

    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("wild", [1.5, -1.5, nan, inf])
def test_an_observation_outside_the_bounds_is_refused(wild):
    with pytest.raises(ValueError, match="outside the bounds"):
        confidence_sequence([0.0, wild], low=-1, high=1, alpha=ALPHA)


@pytest.mark.parametrize(
    ("low", "high", "alpha"), [(1, 1, 0.05), (2, 1, 0.05), (0, 1, 0), (0, 1, 1)]
)
def test_senseless_bounds_and_levels_are_refused(low, high, alpha):
    with pytest.raises(ValueError, match="must rise"):
        confidence_sequence([], low=low, high=high, alpha=alpha)


# --- two arms ------------------------------------------------------------------------------


def test_two_arms_that_differ_are_told_apart():
    found = difference_of_means([0.8] * 100, [-0.8] * 100, low=-1, high=1, alpha=ALPHA)

    assert found.estimate == pytest.approx(-1.6)
    assert -2 <= found.low < -1.6 < found.high < -1
    assert found.n == 200


@given(before=bounded, after=bounded)
def test_swapping_the_arms_turns_the_difference_round(before, after):
    one = difference_of_means(before, after, low=-1, high=1, alpha=ALPHA)
    other = difference_of_means(after, before, low=-1, high=1, alpha=ALPHA)

    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_nothing_is_known_of_an_arm_without_observations():
    found = difference_of_means([], [0.5] * 50, low=-1, high=1, alpha=ALPHA)

    assert found.low < 0 < found.high


# --- the median ----------------------------------------------------------------------------


def test_the_median_of_many_is_closed_in():
    found = median_interval([x / 100 for x in range(101)], low=0, high=1, alpha=ALPHA)

    assert found.estimate == 0.5
    assert 0.35 < found.low < 0.5 < found.high < 0.65
    assert found.n == 101


def test_one_wild_observation_changes_nothing():
    calm = median_interval([0.1] * 20, low=-1, high=1, alpha=ALPHA)
    wild = median_interval([0.1] * 19 + [-500.0], low=-1, high=1, alpha=ALPHA)

    assert (wild.estimate, wild.low, wild.high) == (calm.estimate, calm.low, calm.high)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_observations_leave_every_median_possible(n):
    found = median_interval([0.1] * n, low=-1, high=1, alpha=ALPHA)

    assert (found.low, found.high) == (-1, 1)


def test_the_median_interval_misses_no_more_often_than_declared():
    draw = random.Random(5)
    missed = 0
    for _ in range(2000):
        found = median_interval([draw.random() for _ in range(15)], low=0, high=1, alpha=ALPHA)
        missed += not found.low <= 0.5 <= found.high

    assert missed / 2000 <= ALPHA


def test_it_is_quick_and_exact_for_thousands():
    found = median_interval([1.0] * 3000, low=0, high=1, alpha=ALPHA)

    assert (found.low, found.high) == (1.0, 1.0)


def test_a_level_that_any_interval_meets_gives_the_middle():
    found = median_interval([1.0, 2.0, 3.0, 4.0], low=0, high=9, alpha=0.999)

    assert (found.low, found.high) == (2.0, 3.0)


def test_a_median_of_nonsense_is_refused():
    with pytest.raises(ValueError, match="finite"):
        median_interval([1.0, nan], low=0, high=1, alpha=ALPHA)
