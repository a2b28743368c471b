from itertools import pairwise

import pytest

from arbiters.errors import InvalidError
from soma_agents.training.schedules import CURVES, FLOOR, learning_rate, share


def rates(steps):
    return [learning_rate(step, steps=steps, peak=1.0) for step in range(steps)]


def shares(schedule, **options):
    return [
        share(schedule, step, steps=101, warm_up=0.1, floor=0.1, **options) for step in range(101)
    ]


def test_the_rate_rises_to_its_peak_and_falls_to_the_floor():
    found = rates(100)

    assert found[0] < found[3] < max(found) == 1.0
    assert found[-1] == FLOOR
    top = found.index(1.0)
    assert found[top:] == sorted(found[top:], reverse=True)


def test_a_run_of_one_step_learns_at_the_peak():
    assert rates(1) == [1.0]


@pytest.mark.parametrize("schedule", sorted(CURVES))
def test_every_schedule_stays_between_nothing_and_the_peak(schedule):
    found = shares(schedule)

    assert min(found) > 0
    assert max(found) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("schedule", sorted(set(CURVES) - {"warm-up"}))
def test_every_schedule_but_the_level_one_ends_at_the_floor(schedule):
    assert shares(schedule)[-1] == pytest.approx(0.1)


def test_warm_up_alone_stays_at_the_peak():
    assert shares("warm-up")[10:] == [1.0] * 91


def test_stable_decay_is_level_and_then_a_straight_line():
    found = shares("warm-up-stable-decay", cool_down=0.5)

    assert found[10:55] == [1.0] * 45
    falls = [a - b for a, b in pairwise(found[60:])]
    assert falls == pytest.approx([falls[0]] * len(falls))


def test_one_cycle_rises_for_three_tenths():
    found = shares("one-cycle")

    assert found.index(max(found)) == 30


def test_cyclic_has_four_peaks():
    found = shares("cyclic")
    peaks = [n for n in range(1, 100) if found[n - 1] < found[n] >= found[n + 1]]

    assert len(peaks) == 4


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(InvalidError, match="schedule 'sawtooth' is unknown"):
        share("sawtooth", 0, steps=10)
