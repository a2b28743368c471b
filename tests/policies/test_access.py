import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.access import (
    Allow,
    Bucket,
    Deny,
    Permit,
    RateRules,
    Refuse,
    admit,
    may,
)

RULES = RateRules(per_minute=60, burst=2)


def test_a_burst_is_let_in_and_then_one_a_second():
    first = admit(None, now=100.0, rules=RULES)
    assert isinstance(first, Allow)
    second = admit(first.bucket, now=100.0, rules=RULES)
    assert isinstance(second, Allow)

    third = admit(second.bucket, now=100.0, rules=RULES)

    assert isinstance(third, Deny)
    assert third.retry_after == pytest.approx(1.0)
    assert third.because == "more than 60 requests a minute"
    assert isinstance(admit(third.bucket, now=101.0, rules=RULES), Allow)


def test_tokens_do_not_pile_up_beyond_the_burst():
    admitted = admit(Bucket(tokens=0.0, last=0.0), now=1e9, rules=RULES)

    assert admitted == Allow(Bucket(tokens=1.0, last=1e9))


def test_a_clock_that_goes_back_takes_nothing_away():
    admitted = admit(Bucket(tokens=2.0, last=100.0), now=50.0, rules=RULES)

    assert admitted == Allow(Bucket(tokens=1.0, last=50.0))


def test_a_request_dearer_than_the_bucket_is_let_in_when_it_is_full():
    assert isinstance(admit(None, now=0.0, rules=RULES, cost=100), Allow)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_over_any_time_no_more_is_let_in_than_burst_and_inflow(waits):
    now, bucket, admitted = 0.0, None, 0
    for wait in waits:
        now += wait
        decision = admit(bucket, now=now, rules=RULES)
        bucket = decision.bucket
        admitted += isinstance(decision, Allow)

    assert admitted <= RULES.burst + now * RULES.per_minute / 60 + 1e-6


@given(st.floats(0, 2, exclude_max=True), st.floats(0, 100))
def test_whoever_waits_as_long_as_told_is_let_in(tokens, later):
    denied = admit(Bucket(tokens=tokens, last=0.0), now=0.0, rules=RULES, cost=2)

    assert isinstance(denied, Deny)
    now = denied.retry_after + later + 1e-6
    assert isinstance(admit(denied.bucket, now=now, rules=RULES, cost=2), Allow)


@pytest.mark.parametrize(
    ("role", "action", "allowed"),
    [
        ("admin", "promote", True),
        ("admin", "keys", True),
        ("user", "chat", True),
        ("user", "forget", True),
        ("user", "train", False),
        ("reader", "look", True),
        ("reader", "chat", False),
        ("stranger", "look", False),
    ],
)
def test_each_role_may_do_its_own(role, action, allowed):
    assert isinstance(may(role, action), Permit) is allowed


def test_a_refusal_says_who_may():
    refused = may("reader", "chat")

    assert refused == Refuse("role 'reader' may not chat; use a key of role user or admin")
