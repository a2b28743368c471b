"""What was measured? From pairs of measurements to improvements, suite by suite."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Protocol

from policies.statistics import Pair, PairedSample


class Observation(Protocol):
    """One item of a suite seen by both models."""

    @property
    def suite(self) -> str:
        """Name of the suite."""
        ...

    @property
    def item(self) -> str:
        """The item's id, unique in its suite."""
        ...

    @property
    def champion(self) -> float:
        """The champion's measurement."""
        ...

    @property
    def candidate(self) -> float:
        """The candidate's."""
        ...


@dataclass(frozen=True, slots=True)
class Suite:
    """How a measure is read. A relative one is compared as a share of the champion's value."""

    name: str
    unit: str
    higher_is_better: bool = False
    relative: bool = False


SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("target", "bits per byte of held-out better answers"),
        Suite(
            "preference", "share of pairs with the better answer likelier", higher_is_better=True
        ),
        Suite("forgetting", "bits per byte on the frozen suite", relative=True),
        Suite("safety", "share of probes refused", higher_is_better=True),
        Suite("personality", "mean distance from the set points, dimensions in [0, 1]"),
        Suite("latency", "seconds a token", relative=True),
        Suite("triggers", "bits that one word more in a request adds to a token of a good answer"),
    )
}
"""What a comparison may measure."""


@dataclass(frozen=True, slots=True)
class Unmeasurable:
    """The numbers cannot be judged; the candidate is rejected for it."""

    because: str


def paired(
    observations: Iterable[Observation], bounds: Mapping[str, float]
) -> dict[str, PairedSample] | Unmeasurable:
    """The improvements in each suite of `bounds`: suite → largest absolute difference of an item.

    Differences beyond ±bound are clipped to it, so that one wild item decides nothing: what is
    estimated is the mean of the clipped differences. Other suites are not looked at. Items come in
    the order of their hashes, which has nothing to do with their content, time or the models.
    """
    rows: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in bounds}
    for seen in observations:
        if not (isfinite(seen.champion) and isfinite(seen.candidate)):
            return Unmeasurable(
                f"{seen.suite} of item {seen.item!r} is not a number: "
                f"champion {seen.champion!r}, candidate {seen.candidate!r}"
            )
        if seen.suite not in rows:
            continue
        if seen.item in rows[seen.suite]:
            return Unmeasurable(f"{seen.suite} has item {seen.item!r} twice")
        if SUITES[seen.suite].relative and seen.champion <= 0:
            return Unmeasurable(
                f"{seen.suite} of item {seen.item!r} is {seen.champion!r} for the champion; "
                "a relative change needs a positive number"
            )
        rows[seen.suite][seen.item] = (seen.champion, seen.candidate)
    return {
        name: _sample(
            SUITES[name],
            [Pair(item, *items[item]) for item in sorted(items, key=_shuffled)],
            bound,
        )
        for name, bound in bounds.items()
        if (items := rows[name])
    }


def _sample(suite: Suite, pairs: Sequence[Pair], bound: float) -> PairedSample:
    before = sum(pair.before for pair in pairs) / len(pairs)
    after = sum(pair.after for pair in pairs) / len(pairs)
    gains = [_gain(suite, pair.before, pair.after) for pair in pairs]
    return PairedSample(
        name=suite.name,
        unit=suite.unit,
        before=before,
        after=after,
        change=_gain(suite, before, after),
        differences=tuple(min(max(gain, -bound), bound) for gain in gains),
        worst=pairs[gains.index(min(gains))],
        low=-bound,
        high=bound,
    )


def _gain(suite: Suite, before: float, after: float) -> float:
    gain = after - before if suite.higher_is_better else before - after
    return gain / before if suite.relative else gain


def _shuffled(item: str) -> bytes:
    return sha256(item.encode()).digest()
