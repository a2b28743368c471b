"""Who may do what, how often, and how much of a shared thing each tenant gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# --- how often -----------------------------------------------------------------------------


class RateRules(BaseModel):
    """A token bucket: `per_minute` tokens flow in, at most `burst` are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_minute: float = Field(gt=0)
    burst: float = Field(gt=0)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens there were at time `last`, in seconds of any clock that does not go back."""

    tokens: float
    last: float


@dataclass(frozen=True, slots=True)
class Allow:
    """The request may go on; `bucket` is what remains."""

    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Deny:
    """The request must wait; ask again in `retry_after` seconds."""

    bucket: Bucket
    retry_after: float
    because: str


def admit(
    bucket: Bucket | None, *, now: float, rules: RateRules, cost: float = 1.0
) -> Allow | Deny:
    """Take `cost` tokens out of a bucket, a full one if there is none yet.

    A request dearer than the bucket is deep is let in when the bucket is full.
    """
    per_second = rules.per_minute / 60
    if bucket is None:
        bucket = Bucket(tokens=rules.burst, last=now)
    elapsed = max(now - bucket.last, 0.0)
    tokens = min(bucket.tokens + elapsed * per_second, rules.burst)
    needed = min(cost, rules.burst)
    if tokens >= needed:
        return Allow(Bucket(tokens=tokens - needed, last=now))
    return Deny(
        Bucket(tokens=tokens, last=now),
        retry_after=(needed - tokens) / per_second,
        because=f"more than {rules.per_minute:g} requests a minute",
    )


# --- who may -------------------------------------------------------------------------------

Role = Literal["admin", "user", "reader"]
Action = Literal[
    "look", "chat", "judge", "import", "export", "forget", "train", "promote", "inspect", "keys"
]

_MAY: dict[Role, frozenset[Action]] = {
    "reader": frozenset({"look"}),
    "user": frozenset({"look", "chat", "judge", "import", "export", "forget"}),
    "admin": frozenset(
        {
            "look",
            "chat",
            "judge",
            "import",
            "export",
            "forget",
            "train",
            "promote",
            "inspect",
            "keys",
        }
    ),
}


@dataclass(frozen=True, slots=True)
class Permit:
    """The role may do it."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The role may not; `because` names who may."""

    because: str


def may(role: str, action: Action) -> Permit | Refuse:
    """Whether a key of this role may do this to its own user's things. Unknown roles may nothing."""
    if any(role == known and action in actions for known, actions in _MAY.items()):
        return Permit()
    able = " or ".join(known for known, actions in _MAY.items() if action in actions)
    return Refuse(f"role {role!r} may not {action}; use a key of role {able}")


# --- how much ------------------------------------------------------------------------------


def fair_share(capacity: int, demands: Mapping[str, int]) -> dict[str, int]:
    """Max-min fair shares: nobody gets more than asked, nobody less than any greedier one.

    What cannot be divided evenly goes, one each, to those who ask for most.
    """
    shares: dict[str, int] = {}
    for name in sorted(demands, key=lambda name: (demands[name], name)):
        waiting = len(demands) - len(shares)
        shares[name] = min(demands[name], (capacity - sum(shares.values())) // waiting)
    return shares
