"""How sure may one be? Intervals that stay valid however often one looks.

A confidence *sequence* covers the mean at all times together with probability at least 1 - alpha,
so it may be looked at after every observation and acted upon at any moment. A fixed-n interval
may not: peeked at for long enough it misses almost surely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, isfinite, log, log1p, pi, sqrt

TRUNCATION = 0.5
"""c of Waudby-Smith & Ramdas: no bet may lose more than this share of the capital."""
BISECTIONS = 24
"""Halvings of the range for each end: the ends are exact to range / 2^24, on the safe side."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the values that the observations leave possible."""

    estimate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Pair:
    """What champion and candidate did on one item."""

    item: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class PairedSample:
    """Champion and candidate on the same items; every change is oriented: positive = better.

    `before` and `after` are plain means in `unit`. `change` is the improvement of the whole suite
    (a share of `before` where the measure is relative); `differences` has one improvement an item,
    clipped to [low, high], the bounds that were declared before the first observation; `worst` is
    the item with the smallest.
    """

    name: str
    unit: str
    before: float
    after: float
    change: float
    differences: tuple[float, ...]
    worst: Pair
    low: float
    high: float


def spend(alpha: float, ordinal: int) -> float:
    """The error that the `ordinal`-th candidate ever may take out of `alpha`.

    alpha_k = alpha * 6 / (pi^2 k^2). As the sum of 1 / k^2 is pi^2 / 6, all candidates ever
    together stay within alpha (union bound), however many there will be and however they depend
    on one another.

    Raises:
        ValueError: `ordinal` is not at least 1.
    """
    if ordinal < 1:
        raise ValueError(f"ordinal {ordinal!r} of a candidate must be at least 1")
    return alpha * 6 / (pi**2 * ordinal**2)


def confidence_sequence(xs: Sequence[float], *, low: float, high: float, alpha: float) -> Interval:
    """The mean of observations in [low, high], valid at every number of observations at once.

    Hedged capital by betting with predictable plug-in bets, running intersection: I. Waudby-Smith
    and A. Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal
    Statistical Society B 86 (2024), Theorem 3 with equations (24) to (26). It assumes that each
    observation has the same mean given those before it, and nothing else about the distribution.

    Raises:
        ValueError: an observation is outside the bounds or not finite; alpha is not in (0, 1).
    """
    if not low < high or not 0 < alpha < 1:
        raise ValueError(f"bounds {(low, high)!r} must rise and alpha {alpha!r} be within (0, 1)")
    for x in xs:
        if not low <= x <= high:
            raise ValueError(f"observation {x!r} is outside the bounds {(low, high)!r}")
    if not xs:
        return Interval(estimate=(low + high) / 2, low=low, high=high, n=0)
    width = high - low
    unit = [(x - low) / width for x in xs]
    bets = _plug_in_bets(unit, alpha)
    bottom = _excluded_below(unit, bets, alpha)
    top = 1 - _excluded_below([1 - x for x in unit], bets, alpha)
    # The ends only cross when the mean drifted: then the span between them is left.
    return Interval(
        estimate=sum(xs) / len(xs),
        low=low + width * min(bottom, top),
        high=low + width * max(bottom, top),
        n=len(xs),
    )


def _plug_in_bets(unit: Sequence[float], alpha: float) -> list[float]:
    """The size of each bet, known before its observation: equation (26)."""
    bets: list[float] = []
    total, squares, variance = 0.5, 0.25, 0.25
    for i, x in enumerate(unit, start=1):
        bets.append(sqrt(2 * log(2 / alpha) / (variance * i * log1p(i))))
        total += x
        squares += (x - total / (i + 1)) ** 2
        variance = squares / (i + 1)
    return bets


def _excluded_below(unit: Sequence[float], bets: Sequence[float], alpha: float) -> float:
    """The largest mean in [0, 1] that is found too small, 0 when none is.

    The capital of bets on "more than m" falls as m rises, so the means found too small are an
    interval from 0 and bisection finds its end. Half the capital bets on "more", half on "less":
    a mean is out once its half has grown to 2 / alpha.
    """
    if not _ever_rich(unit, bets, 0.0, 2 / alpha):
        return 0.0
    out, left = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (out + left) / 2
        if _ever_rich(unit, bets, middle, 2 / alpha):
            out = middle
        else:
            left = middle
    return out


def _ever_rich(unit: Sequence[float], bets: Sequence[float], mean: float, goal: float) -> bool:
    """Whether bets on "more than `mean`" ever turned 1 into `goal`."""
    largest = TRUNCATION / mean if mean > 0 else float("inf")
    capital = 1.0
    for x, bet in zip(unit, bets, strict=True):
        capital *= 1 + min(largest, bet) * (x - mean)
        if capital >= goal:
            return True
    return False


def difference_of_means(
    before: Sequence[float], after: Sequence[float], *, low: float, high: float, alpha: float
) -> Interval:
    """How much larger the mean of `after` is, two independent arms that grow at their own pace.

    Each arm has its confidence sequence at alpha / 2; both cover at all times with probability at
    least 1 - alpha (union bound), and so does the difference.
    """
    first = confidence_sequence(before, low=low, high=high, alpha=alpha / 2)
    second = confidence_sequence(after, low=low, high=high, alpha=alpha / 2)
    return Interval(
        estimate=second.estimate - first.estimate,
        low=second.low - first.high,
        high=second.high - first.low,
        n=first.n + second.n,
    )


def median_interval(xs: Sequence[float], *, low: float, high: float, alpha: float) -> Interval:
    """The median, from order statistics; for a sample that is looked at once.

    The interval from the r-th smallest to the r-th largest misses with probability at most
    2 P(Binomial(n, 1/2) < r): W. R. Thompson, Annals of Mathematical Statistics 7 (1936). No
    distribution is assumed and a few wild observations change nothing, which suits durations.
    With too few observations for any r it is [low, high].

    Raises:
        ValueError: an observation is not finite.
    """
    if not all(isfinite(x) for x in xs):
        raise ValueError(f"observations {xs!r} must be finite")
    if not xs:
        return Interval(estimate=(low + high) / 2, low=low, high=high, n=0)
    ordered = sorted(min(max(x, low), high) for x in xs)
    n = len(ordered)
    rank, missed = 0, 2 / 2**n
    while missed <= alpha and rank < n // 2:
        rank += 1
        missed += 2 * comb(n, rank) / 2**n
    return Interval(
        estimate=(ordered[(n - 1) // 2] + ordered[n // 2]) / 2,
        low=ordered[rank - 1] if rank else low,
        high=ordered[-rank] if rank else high,
        n=n,
    )
