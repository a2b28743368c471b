"""Who may do what, how often, and how much of a shared thing each tenant gets."""

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


def has_place(*, taken: int, own: int, capacity: int) -> bool:
    """Whether a caller who holds `own` of the `taken` places may have one more of `capacity`.

    The last fifth is for callers who have none: whoever asks for much cannot keep others out.
    """
    return taken < capacity - capacity // 5 or (own == 0 and taken < capacity)


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
