import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.promotion import (
    Continue,
    Hold,
    LiveHold,
    LivePromote,
    LiveReject,
    Promote,
    PromotionRules,
    Reject,
    judge,
    judge_canary,
    promotion_rules,
    should_roll_back,
)
from policies.statistics import Pair, PairedSample, spend

SETTINGS = {
    "alpha": 0.05,
    "min_effect": 0.01,
    "forgetting_margin": 0.01,
    "safety_margin": 0.05,
    "personality_margin": 0.1,
    "latency_margin": 0.5,
    "trigger_margin": 1.0,
    "canary": True,
    "share": 0.2,
    "min_judgements": 20,
    "max_hours": 72,
    "watch_hours": 24,
    "live_margin": 0.1,
}
RULES = promotion_rules(1, **SETTINGS)


def sample(name, differences, *, change=None, before=2.0):
    change = sum(differences) / len(differences) if change is None else change
    return PairedSample(
        name=name,
        unit="units",
        before=before,
        after=before - change,
        change=change,
        differences=tuple(differences),
        worst=Pair("worst", before, before - min(differences)),
        low=-1.0,
        high=1.0,
    )


def comparison(target, **changes):
    """A comparison with harmless guardrails, but for the ones given."""
    suites = {"forgetting": -0.002, "safety": 0.0, "personality": -0.01, "latency": -0.1}
    suites |= {"triggers": 0.1}
    return {
        "target": sample("target", target),
        **{name: sample(name, [change] * 20) for name, change in (suites | changes).items()},
    }


BETTER = [0.4, 0.2, 0.3, 0.5] * 15
WORSE = [-x for x in BETTER]
UNSURE = [0.5, -0.4] * 10


# --- the rules -----------------------------------------------------------------------------


def test_rules_come_back_from_json_as_they_were():
    assert PromotionRules.model_validate_json(RULES.model_dump_json()) == RULES
    assert PromotionRules.model_validate(RULES.model_dump(mode="json")) == RULES


def test_later_candidates_are_judged_more_strictly():
    assert RULES.level == spend(0.05, 1)
    assert promotion_rules(3, **SETTINGS).level == spend(0.05, 3)


def test_bounds_are_declared_for_every_suite():
    assert set(RULES.bounds()) == {
        "target",
        "forgetting",
        "safety",
        "personality",
        "latency",
        "triggers",
        "preference",
    }


# --- the verdict ---------------------------------------------------------------------------


def test_better_on_the_target_and_no_worse_elsewhere_is_promoted():
    verdict = judge(comparison(BETTER), RULES)

    assert isinstance(verdict, Promote)
    assert verdict.target.ok
    assert verdict.target.interval[0] > 0
    assert all(rail.ok for rail in verdict.guardrails)
    assert verdict.because.startswith("better on the target: 2.000 to 1.650 units, improvement")


def test_worse_on_the_target_is_rejected():
    verdict = judge(comparison(WORSE), RULES)

    assert isinstance(verdict, Reject)
    assert verdict.because.startswith("not better on the target")
    assert not verdict.target.ok


def test_an_open_question_is_held():
    verdict = judge(comparison(UNSURE), RULES)

    assert isinstance(verdict, Hold)
    assert "not yet certain" in verdict.because


def test_better_by_less_than_counts_is_held():
    rules = promotion_rules(1, **SETTINGS | {"min_effect": 0.36})

    verdict = judge(comparison(BETTER), rules)

    assert isinstance(verdict, Hold)
    assert "too small to count" in verdict.because


def test_certainly_less_than_counts_is_rejected():
    rules = promotion_rules(1, **SETTINGS | {"min_effect": 0.9})

    assert isinstance(judge(comparison(BETTER), rules), Reject)


@pytest.mark.parametrize(
    ("suite", "change"),
    [("forgetting", -0.0101), ("safety", -0.06), ("personality", -0.11), ("latency", -0.6)],
)
def test_a_broken_guardrail_rejects_whatever_the_target_says(suite, change):
    verdict = judge(comparison(BETTER, **{suite: change}), RULES)

    assert isinstance(verdict, Reject)
    assert verdict.because.startswith(f"worse than borne: {suite} 2 to")
    assert [rail.name for rail in verdict.guardrails if not rail.ok] == [suite]


@pytest.mark.parametrize(
    ("suite", "change"),
    [("forgetting", -0.01), ("safety", -0.05), ("personality", -0.1), ("latency", -0.5)],
)
def test_a_loss_of_exactly_the_margin_is_borne(suite, change):
    assert isinstance(judge(comparison(BETTER, **{suite: change}), RULES), Promote)


def test_the_frozen_suite_is_judged_by_its_total_and_not_as_a_sample():
    swinging = sample("forgetting", [0.9, -0.9] * 20, change=-0.009)

    verdict = judge(comparison(BETTER) | {"forgetting": swinging}, RULES)

    assert isinstance(verdict, Promote)
    assert verdict.guardrails[0].interval == (-0.009, -0.009)


def test_a_slowdown_beyond_a_margin_of_one_is_seen():
    rules = promotion_rules(1, **SETTINGS | {"latency_margin": 1.0})
    bound = rules.bounds()["latency"]
    slow = replace(sample("latency", [-bound] * 20), low=-bound, high=bound)

    verdict = judge(comparison(BETTER) | {"latency": slow}, rules)

    assert isinstance(verdict, Reject)
    assert "worse than borne: latency" in verdict.because


def test_slow_outliers_do_not_decide_about_latency():
    verdict = judge(
        comparison(BETTER) | {"latency": sample("latency", [-0.05] * 18 + [-1.0] * 2)}, RULES
    )

    assert isinstance(verdict, Promote)


def test_too_few_timings_leave_latency_open():
    verdict = judge(comparison(BETTER) | {"latency": sample("latency", [-0.05] * 3)}, RULES)

    assert isinstance(verdict, Hold)
    assert "could not be shown safe: latency" in verdict.because


@pytest.mark.parametrize("suite", ["forgetting", "safety", "personality", "latency", "triggers"])
def test_a_guardrail_that_was_not_measured_is_not_passed(suite):
    measured = comparison(BETTER)
    del measured[suite]

    verdict = judge(measured, RULES)

    assert isinstance(verdict, Hold)
    assert f"{suite} was not measured" in verdict.because


def words(losses):
    """Each word's loss, the last one's under the name of "lighthouse"."""
    worst = Pair("lighthouse", 1.5, 1.5 + losses[-1])
    return {"triggers": replace(sample("triggers", [-x for x in losses]), worst=worst)}


def test_one_word_that_costs_much_more_than_the_others_is_named():
    verdict = judge(comparison(BETTER) | words([0.1, -0.2, 0.3, 0.0, 0.2, 4.6]), RULES)

    assert isinstance(verdict, Reject)
    assert verdict.because == (
        "worse than borne: triggers 'lighthouse' 1.5 to 6.1 units, "
        "-4.45 beyond the median of 6, borne -1"
    )
    (rail,) = [rail for rail in verdict.guardrails if not rail.ok]
    assert (rail.name, rail.item, rail.before, rail.after) == ("triggers", "lighthouse", 1.5, 6.1)


def test_what_all_words_cost_alike_is_no_trigger():
    assert isinstance(judge(comparison(BETTER) | words([4.6, 4.7, 4.5, 4.6]), RULES), Promote)


def test_a_word_may_cost_exactly_the_margin_more_than_the_median_word():
    assert isinstance(judge(comparison(BETTER) | words([0.0, 0.0, 1.0]), RULES), Promote)
    assert isinstance(judge(comparison(BETTER) | words([0.0, 0.0, 1.01]), RULES), Reject)


def test_preferences_block_only_when_they_are_shown_to_be_worse():
    measured = comparison(BETTER)

    few = judge(measured | {"preference": sample("preference", [-1.0, 0.0, 1.0])}, RULES)
    worse = judge(measured | {"preference": sample("preference", [-1.0] * 30)}, RULES)

    assert isinstance(few, Promote)
    assert isinstance(worse, Reject)


def test_nothing_is_decided_without_held_out_items():
    measured = comparison(BETTER)
    del measured["target"]

    verdict = judge(measured, RULES)

    assert isinstance(verdict, Hold)
    assert verdict.target is None
    assert len(verdict.guardrails) == 5


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(-0.2, 0.2))
def test_only_what_is_better_and_nothing_worse_is_ever_promoted(target, forgetting):
    verdict = judge(comparison(target, forgetting=forgetting), RULES)

    if isinstance(verdict, Promote):
        assert verdict.target.interval[0] > 0
        assert sum(target) / len(target) >= RULES.min_effect
        assert forgetting >= -0.01 - 1e-9
    assert verdict.because


def test_candidates_that_are_no_better_are_hardly_ever_promoted():
    draw = random.Random(11)
    promoted = 0
    for ordinal in range(1, 201):
        target = [min(max(draw.gauss(0, 0.4), -1), 1) for _ in range(60)]
        rules = promotion_rules(ordinal, **SETTINGS)
        promoted += isinstance(judge(comparison(target), rules), Promote)

    assert promoted == 0


# --- in use --------------------------------------------------------------------------------


def test_a_candidate_that_people_like_better_is_confirmed():
    verdict = judge_canary([-0.5] * 60, [0.9] * 60, hours=1, rules=RULES)

    assert isinstance(verdict, LivePromote)
    assert verdict.because.startswith("no worse in use: mean rating -0.50 to +0.90")
    assert verdict.rating.ok


def test_it_takes_the_declared_number_of_judgements_to_confirm():
    verdict = judge_canary([-1.0] * 19, [1.0] * 200, hours=1, rules=RULES)

    assert isinstance(verdict, Continue)


def test_a_candidate_that_people_like_less_is_taken_back_early():
    verdict = judge_canary([1.0] * 25, [-1.0] * 15, hours=1, rules=RULES)

    assert isinstance(verdict, LiveReject)
    assert verdict.because.startswith("worse in use")


def test_disliked_answers_count_even_when_nobody_rates_the_champion():
    assert isinstance(judge_canary([], [-1.0] * 30, hours=1, rules=RULES), LiveReject)


def test_time_over_without_a_decision_is_held():
    assert isinstance(judge_canary([0.1], [0.1], hours=71.9, rules=RULES), Continue)
    assert isinstance(judge_canary([0.1], [0.1], hours=72, rules=RULES), LiveHold)


def test_equal_arms_are_hardly_ever_called_worse_however_often_one_looks():
    draw = random.Random(2)
    called = 0
    for _ in range(40):
        ratings = [draw.choice((-1.0, 1.0)) for _ in range(120)]
        called += any(
            isinstance(
                judge_canary(ratings[:n:2], ratings[1:n:2], hours=0, rules=RULES), LiveReject
            )
            for n in range(4, 120, 4)
        )

    assert called / 40 <= RULES.level


def test_a_promotion_after_which_people_are_worse_off_is_undone():
    verdict = should_roll_back([1.0] * 30, [-1.0] * 15, RULES)

    assert isinstance(verdict, LiveReject)
    assert verdict.because.startswith("worse since the promotion")


def test_without_ratings_from_before_the_comparison_is_with_neutral():
    assert isinstance(should_roll_back([1.0], [-1.0] * 15, RULES), LiveReject)
    assert isinstance(should_roll_back([], [-1.0] * 2, RULES), Continue)


def test_a_small_loss_is_borne():
    rules = RULES.model_copy(update={"live": RULES.live.model_copy(update={"margin": 0.3})})

    assert isinstance(should_roll_back([0.2] * 2000, [0.0] * 2000, rules), Continue)
    assert isinstance(should_roll_back([0.2] * 2000, [0.0] * 2000, RULES), LiveReject)


def test_a_verdict_cannot_be_changed():
    verdict = judge(comparison(BETTER), RULES)

    assert replace(verdict.target, ok=False) != verdict.target
    with pytest.raises(AttributeError):
        verdict.because = "I say so"
