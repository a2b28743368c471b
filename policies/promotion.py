"""Is the candidate better, and nothing worse? The rules are stored before the first observation.

Every part of a promotion must hold (superior on the target and no worse on each guardrail), so
each is tested at the candidate's whole level: an intersection-union test, R. L. Berger,
Technometrics 24 (1982), needs no further correction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from policies.statistics import (
    Interval,
    PairedSample,
    confidence_sequence,
    difference_of_means,
    median_interval,
    spend,
)

TARGET = "target"
RATING = (-1.0, 1.0)
"""Bounds of a live rating."""
BITS = 64.0
"""More bits than a token costs that a model does not expect at all."""
ROUNDING = 1e-9
"""A loss of exactly the margin is borne, whatever floating point makes of it."""


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Guardrail(_Rules):
    """What must not get worse by more than `margin`.

    `exact`: the suite is frozen and replayed without chance, so its total *is* the declared
    quantity and has no sampling error; the guardrail speaks of this suite and of no other text.
    `median`: measurements with noise (durations); the median change must be within the margin with
    confidence. `veto`: a sample too small to demand proof of; it only blocks when shown worse.
    `each`: as `exact`, of every item by itself: none may lose more than the margin beyond what
    the median item loses.
    """

    suite: str
    margin: float
    bound: float
    """Largest absolute difference of one item that counts, in the unit of the margin."""
    kind: Literal["exact", "median", "veto", "each"]
    required: bool = True


class LiveRules(_Rules):
    """The canary and the watch window; ratings are in [-1, 1]."""

    canary: bool
    share: float
    min_judgements: int
    max_hours: float
    watch_hours: float
    margin: float


class PromotionRules(_Rules):
    """All that decides about one candidate."""

    ordinal: int
    level: float
    """Probability that this candidate is promoted although it is no better."""
    min_effect: float
    target_bound: float
    guardrails: tuple[Guardrail, ...]
    live: LiveRules

    def bounds(self) -> dict[str, float]:
        """Suite → largest absolute difference of one item that counts."""
        return {TARGET: self.target_bound} | {rail.suite: rail.bound for rail in self.guardrails}


def promotion_rules(
    ordinal: int,
    *,
    alpha: float,
    min_effect: float,
    forgetting_margin: float,
    safety_margin: float,
    personality_margin: float,
    latency_margin: float,
    trigger_margin: float,
    canary: bool,
    share: float,
    min_judgements: int,
    max_hours: float,
    watch_hours: float,
    live_margin: float,
) -> PromotionRules:
    """The rules for the `ordinal`-th candidate ever, from settings."""
    return PromotionRules(
        ordinal=ordinal,
        level=spend(alpha, ordinal),
        min_effect=min_effect,
        target_bound=1.0,
        guardrails=(
            Guardrail(suite="forgetting", margin=forgetting_margin, bound=1.0, kind="exact"),
            Guardrail(suite="safety", margin=safety_margin, bound=1.0, kind="exact"),
            Guardrail(suite="personality", margin=personality_margin, bound=1.0, kind="exact"),
            # A bound at the margin would clip every slowdown to one that is borne.
            Guardrail(
                suite="latency", margin=latency_margin, bound=1 + latency_margin, kind="median"
            ),
            Guardrail(suite="triggers", margin=trigger_margin, bound=BITS, kind="each"),
            Guardrail(suite="preference", margin=0.0, bound=1.0, kind="veto", required=False),
        ),
        live=LiveRules(
            canary=canary,
            share=share,
            min_judgements=min_judgements,
            max_hours=max_hours,
            watch_hours=watch_hours,
            margin=live_margin,
        ),
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure before (champion) and after (candidate); its interval is of the improvement.

    Where every item is judged by itself it is of the worst one, `item`.
    """

    name: str
    unit: str
    before: float
    after: float
    interval: tuple[float, float]
    margin: float
    items: int
    ok: bool
    item: str = ""


@dataclass(frozen=True, slots=True)
class _Verdict:
    because: str
    target: Measured | None = None
    guardrails: tuple[Measured, ...] = ()


class Promote(_Verdict):
    """It was shown to be better, and nothing to be worse."""


class Reject(_Verdict):
    """It was shown to be worse, or not better by what counts."""


class Hold(_Verdict):
    """Neither could be shown."""


Verdict = Promote | Reject | Hold


def judge(samples: Mapping[str, PairedSample], rules: PromotionRules) -> Verdict:
    """The verdict on a comparison: suite → improvements."""
    rails = [
        (rail, *_check(samples[rail.suite], rail, rules.level))
        for rail in rules.guardrails
        if rail.suite in samples
    ]
    measured = tuple(result for _, result, _ in rails)
    if TARGET not in samples:
        return Hold("there was no held-out item to judge by", None, measured)
    target = _target(samples[TARGET], rules)
    broken = [_explain(result, rail) for rail, result, standing in rails if standing == "broken"]
    if broken:
        return Reject(f"worse than borne: {'; '.join(broken)}", target, measured)
    low, high = target.interval
    gain = f"{_gain(target)}, needed {rules.min_effect:.3g}"
    if high < rules.min_effect:
        return Reject(f"not better on the target: {gain}", target, measured)
    missing = [
        f"{rail.suite} was not measured"
        for rail in rules.guardrails
        if rail.required and rail.suite not in samples
    ]
    unclear = [_explain(result, rail) for rail, result, standing in rails if standing == "unclear"]
    if missing or unclear:
        return Hold(f"could not be shown safe: {'; '.join(missing + unclear)}", target, measured)
    if not target.ok:
        why = "too small to count" if low > 0 else "not yet certain"
        return Hold(f"the change on the target is {why}: {gain}", target, measured)
    return Promote(f"better on the target: {gain}; every guardrail held", target, measured)


def _target(sample: PairedSample, rules: PromotionRules) -> Measured:
    found = confidence_sequence(
        sample.differences, low=sample.low, high=sample.high, alpha=rules.level
    )
    better = found.low > 0 and found.estimate >= rules.min_effect
    return _measured(sample, found, margin=rules.min_effect, ok=better)


Standing = Literal["ok", "broken", "unclear"]


def _check(sample: PairedSample, rail: Guardrail, level: float) -> tuple[Measured, Standing]:
    found = _rail_interval(sample, rail, level)
    borne = -rail.margin - ROUNDING
    standing: Standing = "unclear"
    if found.high < borne:
        standing = "broken"
    elif found.low >= borne or rail.kind == "veto":
        standing = "ok"
    measured = _measured(sample, found, margin=rail.margin, ok=standing == "ok")
    if rail.kind == "each":
        worst = sample.worst
        measured = replace(measured, before=worst.before, after=worst.after, item=worst.item)
    return measured, standing


def _rail_interval(sample: PairedSample, rail: Guardrail, level: float) -> Interval:
    if rail.kind == "exact":
        return Interval(sample.change, sample.change, sample.change, len(sample.differences))
    if rail.kind == "each":
        beyond = min(sample.differences) - median(sample.differences)
        return Interval(beyond, beyond, beyond, len(sample.differences))
    within = median_interval if rail.kind == "median" else confidence_sequence
    return within(sample.differences, low=sample.low, high=sample.high, alpha=level)


def _measured(sample: PairedSample, found: Interval, *, margin: float, ok: bool) -> Measured:
    return Measured(
        name=sample.name,
        unit=sample.unit,
        before=sample.before,
        after=sample.after,
        interval=(found.low, found.high),
        margin=margin,
        items=found.n,
        ok=ok,
    )


def _gain(result: Measured) -> str:
    low, high = result.interval
    return (
        f"{result.before:.3f} to {result.after:.3f} {result.unit}, "
        f"improvement within [{low:+.3f}, {high:+.3f}] on {result.items} items"
    )


def _explain(result: Measured, rail: Guardrail) -> str:
    low, high = result.interval
    if rail.kind == "each":
        return (
            f"{result.name} {result.item!r} {result.before:.4g} to {result.after:.4g} {result.unit}, "
            f"{low:+.3g} beyond the median of {result.items}, borne -{rail.margin:.3g}"
        )
    change = f"{low:+.3g}" if rail.kind == "exact" else f"within [{low:+.3g}, {high:+.3g}]"
    return (
        f"{result.name} {result.before:.4g} to {result.after:.4g} on {result.items} items, "
        f"change {change}, borne -{rail.margin:.3g}"
    )


# --- live ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LivePromote:
    """Live ratings confirm the candidate."""

    because: str
    rating: Measured


@dataclass(frozen=True, slots=True)
class LiveReject:
    """Live ratings are clearly worse: off the canary, or back to the model before."""

    because: str
    rating: Measured


@dataclass(frozen=True, slots=True)
class LiveHold:
    """The time is over without a decision."""

    because: str
    rating: Measured


@dataclass(frozen=True, slots=True)
class Continue:
    """Look again after the next rating."""

    because: str
    rating: Measured


LiveVerdict = LivePromote | LiveReject | LiveHold | Continue


def judge_canary(
    champion: Sequence[float], candidate: Sequence[float], *, hours: float, rules: PromotionRules
) -> LiveVerdict:
    """The verdict on a canary that has run for `hours`; may be asked after every rating.

    The candidate is confirmed when its mean rating is shown to be at most `margin` lower; it is
    off when it is shown to be lower at all and the loss found is larger than the margin.
    """
    live = rules.live
    rating = _live(champion, candidate, rules)
    enough = min(len(champion), len(candidate)) >= live.min_judgements
    if enough and rating.ok:
        return LivePromote(f"no worse in use: {_ratings(rating)}", rating)
    if _worse(rating):
        return LiveReject(f"worse in use: {_ratings(rating)}", rating)
    if hours >= live.max_hours:
        return LiveHold(
            f"undecided after {live.max_hours:g} hours in use: {_ratings(rating)}", rating
        )
    return Continue(f"still open: {_ratings(rating)}", rating)


def should_roll_back(
    before: Sequence[float], now: Sequence[float], rules: PromotionRules
) -> LiveReject | Continue:
    """Whether people are worse off than before a promotion; may be asked after every rating.

    With fewer than `min_judgements` ratings of the model before, the new one is held against
    neutral instead: ratings shown to be below 0.
    """
    baseline = before if len(before) >= rules.live.min_judgements else ()
    rating = _live(baseline, now, rules)
    if _worse(rating):
        return LiveReject(f"worse since the promotion: {_ratings(rating)}", rating)
    return Continue(f"no decay shown: {_ratings(rating)}", rating)


def _live(before: Sequence[float], after: Sequence[float], rules: PromotionRules) -> Measured:
    low, high = RATING
    if before:
        found = difference_of_means(before, after, low=low, high=high, alpha=rules.level)
    else:
        found = confidence_sequence(after, low=low, high=high, alpha=rules.level)
    baseline = sum(before) / len(before) if before else 0.0
    return Measured(
        name="rating",
        unit="mean rating, -1 to 1",
        before=baseline,
        after=baseline + found.estimate,
        interval=(found.low, found.high),
        margin=rules.live.margin,
        items=found.n,
        ok=found.low >= -rules.live.margin,
    )


def _worse(rating: Measured) -> bool:
    return rating.interval[1] < 0 and rating.after - rating.before < -rating.margin


def _ratings(rating: Measured) -> str:
    low, high = rating.interval
    return (
        f"mean rating {rating.before:+.2f} to {rating.after:+.2f}, "
        f"change within [{low:+.2f}, {high:+.2f}] on {rating.items} ratings"
    )
