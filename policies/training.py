"""Is it time to train, from what, and is there enough of it?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from math import ceil
from typing import Literal

from pydantic import BaseModel, ConfigDict

# --- when ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What is known when somebody asks whether a round is due."""

    new_messages: int
    """Messages since the material of the last round."""
    running: str | None = None
    """The round that is not finished."""
    requested: Literal["user", "schedule"] | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """Start a round."""

    because: str


@dataclass(frozen=True, slots=True)
class NotDue:
    """Start none."""

    because: str


def is_due(facts: TrainingFacts, *, min_new_messages: int) -> Due | NotDue:
    """Whether to start a training round now."""
    if facts.running is not None:
        return NotDue(f"round {facts.running} is still running; see it with 'soma status'")
    if facts.requested == "user":
        return Due(f"asked for by the user, {facts.new_messages} new messages")
    if facts.new_messages >= min_new_messages:
        return Due(f"{facts.new_messages} new messages, {min_new_messages} start a round")
    if facts.requested == "schedule" and facts.new_messages > 0:
        return Due(f"the weekly round, {facts.new_messages} new messages")
    if facts.requested == "schedule":
        return NotDue("nothing new was said since the last round")
    return NotDue(f"{facts.new_messages} new messages, {min_new_messages} start a round")


@dataclass(frozen=True, slots=True)
class Weekly:
    """A moment of the week in local time; Monday is day 0."""

    weekday: int
    hour: int
    minute: int


def last_due(weekly: Weekly, now: datetime) -> datetime:
    """The newest such moment that is not after `now`, which is local time.

    A moment that the change to daylight saving left out is due when the clock has passed it; one
    that came twice is the same both times.
    """
    back = timedelta(days=(now.weekday() - weekly.weekday) % 7)
    due = (now - back).replace(hour=weekly.hour, minute=weekly.minute, second=0, microsecond=0)
    return due if due <= now else due - timedelta(days=7)


# --- from what -----------------------------------------------------------------------------

Side = Literal["train", "validation", "heldout"]


@dataclass(frozen=True, slots=True)
class Group:
    """Examples that stay together: a conversation, or the phrasings of one fact.

    `pinned` is where it must go: a conversation marked as held out to `heldout`; the phrasings of
    a fact to `train`, for what is held out is not learnt; the one phrasing of it that is held back,
    a group of its own, to `validation`.
    """

    name: str
    at: datetime
    """When its newest message was written."""
    pinned: Side | None = None


def split(
    groups: Iterable[Group], *, heldout_share: float, validation_share: float = 0.1
) -> dict[str, Side]:
    """Group → its side. The same groups always give the same sides.

    Held out are the pinned groups and, as far as these are less than `heldout_share` of all, half
    by time (the newest: how well does it do tomorrow?) and half by the hash of the name. A hash
    does not change, so what is held out by it stays so in every later round and no champion has
    ever seen it.
    """
    everything = sorted(groups, key=lambda group: (group.at, group.name))
    sides: dict[str, Side] = {group.name: group.pinned for group in everything if group.pinned}
    pinned = sum(side == "heldout" for side in sides.values())
    free = [group for group in everything if group.name not in sides]
    wanted = heldout_share * len(free) - pinned * (1 - heldout_share)
    if wanted > 0 and len(free) > 1:
        share = wanted / len(free)
        newest = {group.name for group in free[-ceil(wanted / 2) :]}
        for group in free:
            if group.name in newest or _bucket("heldout", group.name) < share / 2:
                sides[group.name] = "heldout"
    rest = [group.name for group in free if group.name not in sides]
    return sides | _validate(rest, validation_share)


def _validate(names: Sequence[str], share: float) -> dict[str, Side]:
    """Choose by hash, at least one of two and never all."""
    ranked = sorted(names, key=lambda name: _bucket("validation", name))
    some = sum(_bucket("validation", name) < share for name in ranked)
    cut = min(max(some, 1), len(ranked) - 1)
    return {name: "validation" if i < cut else "train" for i, name in enumerate(ranked)}


def _bucket(salt: str, name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(sha256(f"{salt}\0{name}".encode()).digest()[:8]) / 2**64


# --- enough --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Examples:
    """How many examples each side has."""

    train: int
    validation: int
    heldout: int


class ExampleRules(BaseModel):
    """Counts below which a round is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_train: int
    min_validation: int = 1
    min_heldout: int = 12
    """With fewer, no confidence sequence at level 0.03 can exclude zero, however large the gain."""


@dataclass(frozen=True, slots=True)
class Sufficient:
    """Enough to learn from and to judge by."""

    because: str


@dataclass(frozen=True, slots=True)
class Insufficient:
    """A round would show nothing."""

    because: str


def is_sufficient(examples: Examples, rules: ExampleRules) -> Sufficient | Insufficient:
    """Whether a round can learn something and prove it."""
    short = [
        f"{have} {side} examples, at least {need} are needed"
        for side, have, need in (
            ("training", examples.train, rules.min_train),
            ("validation", examples.validation, rules.min_validation),
            ("held-out", examples.heldout, rules.min_heldout),
        )
        if have < need
    ]
    if short:
        return Insufficient(
            f"{'; '.join(short)}: import conversations, correct replies or rate them"
        )
    return Sufficient(
        f"{examples.train} training, {examples.validation} validation and "
        f"{examples.heldout} held-out examples"
    )
