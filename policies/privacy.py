"""What may be learnt from: whose words, judged by whom, and how much of it from one account."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Origin = Literal["reply", "demonstration", "imported", "fact"]
TargetKind = Literal["demonstration", "liked", "imported", "fact"]


class PrivacyRules(BaseModel):
    """Thresholds on ratings, which lie in [-1, 1], and on one account's share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    liked: float = Field(default=0.5, gt=0, le=1)
    disliked: float = Field(default=-0.5, ge=-1, lt=0)
    share: float = Field(default=0.01, gt=0, le=1)
    """Largest share of the targets' bytes that one of many accounts may contribute."""
    fair: float = Field(default=1.5, gt=1)
    """Among few accounts the share is this many times an equal one: 75% of two, 15% of ten."""
    always: int = Field(default=32_000, ge=0)
    """Bytes any account may contribute; a few hundred poisoned documents are known to suffice
    to plant a behaviour, this is well below."""


@dataclass(frozen=True, slots=True)
class Material:
    """A text that might become a target.

    `trust` is of the text itself (for a reply of SOMA's own that is `self`), `asked_by` of the
    message it answers. `rating` is what `rating_of` makes of the judgements. `shared` says that
    the model will answer other people too.
    """

    origin: Origin
    trust: str
    asked_by: str = "owner"
    rating: float | None = None
    deleted: bool = False
    forgotten: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """May be learnt: SOMA is to say this."""

    kind: TargetKind
    because: str


@dataclass(frozen=True, slots=True)
class Losing:
    """May only be the losing side of a preference."""

    because: str


@dataclass(frozen=True, slots=True)
class Context:
    """May stand before a target, never be one."""

    because: str


@dataclass(frozen=True, slots=True)
class Excluded:
    """May not be in a dataset at all."""

    because: str


Use = Target | Losing | Context | Excluded

_TRUSTED: dict[Origin, frozenset[str]] = {
    "reply": frozenset({"self"}),
    "demonstration": frozenset({"owner"}),
    "imported": frozenset({"imported"}),
    "fact": frozenset({"owner"}),
}


def target_of(material: Material, rules: PrivacyRules) -> Use:
    """What a text may be used for."""
    if material.deleted:
        return Excluded("its conversation was deleted")
    if material.forgotten:
        return Excluded("it was taken back")
    if material.trust not in _TRUSTED[material.origin]:
        return Context(f"a {material.origin} of trust {material.trust!r} is nobody's wish")
    if material.asked_by not in {"owner", "imported"}:
        return Context(f"what it answers is of trust {material.asked_by!r}")
    if material.origin == "fact" and material.shared:
        return Excluded("a fact about one person, and the model answers others too")
    if material.origin == "reply":
        return _of_reply(material.rating, rules)
    because = {
        "demonstration": "a person wrote it as the better answer",
        "imported": "a person imported it",
        "fact": "a person stated it",
    }
    return Target(material.origin, because[material.origin])


def _of_reply(rating: float | None, rules: PrivacyRules) -> Use:
    if rating is None:
        return Context("nobody judged it")
    if rating >= rules.liked:
        return Target("liked", f"a person rated it {rating:g}")
    if rating <= rules.disliked:
        return Losing(f"a person rated it {rating:g}")
    return Context(f"rated {rating:g}, neither liked nor disliked")


def trust_of_source(source: str) -> str:
    """The trust of what a feedback says: only a human speaks for the owner."""
    return "owner" if source == "HUMAN" else "self"


def rating_of(judgements: Sequence[tuple[str, float]]) -> float | None:
    """The newest rating by a human of (source, value) pairs, oldest first; None without one."""
    by_humans = [value for source, value in judgements if trust_of_source(source) == "owner"]
    return by_humans[-1] if by_humans else None


def allowances(contributed: Mapping[str, int], rules: PrivacyRules) -> dict[str, int]:
    """Bytes of target text that each account may contribute, given what each has.

    One account alone may contribute all it has. Of several, none may be more than its share of
    what remains after all have been cut down to the same cap (or `rules.always`, if that is more).
    """
    amounts = [amount for amount in contributed.values() if amount > 0]
    if len(amounts) < 2:  # noqa: PLR2004 - there is nobody to share with
        return dict(contributed)
    share = max(rules.share, rules.fair / len(amounts))
    cap = max(_largest_cap(amounts, share), rules.always)
    return {account: min(amount, cap) for account, amount in contributed.items()}


def _largest_cap(amounts: Sequence[int], share: float) -> int:
    """The largest c with c ≤ share · Σ min(amount, c).

    The right side minus the left is concave and rises from 0, as share · n > 1: so bisect.
    """
    low, high = 0, max(amounts)
    while low < high:
        cap = (low + high + 1) // 2
        if cap <= share * sum(min(amount, cap) for amount in amounts):
            low = cap
        else:
            high = cap - 1
    return low


# --- repetitions ---------------------------------------------------------------------------

SIMILAR = 0.9
"""Jaccard similarity of three-word shingles from which two texts count as the same."""
_SHINGLE = 3


def repetitions(texts: Sequence[str]) -> set[int]:
    """Places of the texts that repeat an earlier one, word for word or nearly so.

    What stands in the data many times is learnt by heart (Lee et al. 2022), and what stands on
    both sides of a split proves nothing. Candidates are found by prefix filtering (Bayardo et al.
    2007): two sets of similarity t share one of their first |x| - ⌈t |x|⌉ + 1 items, the rarest
    first. That is exact, and near linear.
    """
    sets = [_shingles(text) for text in texts]
    frequency = Counter(shingle for shingles in sets for shingle in shingles)
    repeated: set[int] = set()
    kept: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, shingles in enumerate(sets):
        ranked = sorted(shingles, key=lambda shingle: (frequency[shingle], shingle))
        prefix = ranked[: len(ranked) - ceil(SIMILAR * len(ranked)) + 1]
        candidates = {other for shingle in prefix for other in kept[shingle]}
        if any(_jaccard(shingles, sets[other]) >= SIMILAR for other in candidates):
            repeated.add(place)
            continue
        for shingle in prefix:
            kept[shingle].append(place)
    return repeated


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Runs of three words; a shorter text is one run. Case, spacing and punctuation are ignored."""
    words = re.findall(r"\w+", text.casefold()) or [text.strip()]
    last = max(len(words) - _SHINGLE + 1, 1)
    return frozenset(tuple(words[i : i + _SHINGLE]) for i in range(last))


def _jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)
