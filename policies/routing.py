"""Which specialist and which model answers? Asked in the gateway, for every message."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

PERSONAL = "personal"
"""The specialist that talks with its user."""
ALIASES = frozenset({"", "soma", "default"})
"""Names that ask for whatever is in service."""
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_OWN = re.compile(r"soma(-.*)?")


@dataclass(frozen=True, slots=True)
class Canary:
    """A candidate that answers a share of the conversations."""

    experiment: str
    candidate: str
    share: float


@dataclass(frozen=True, slots=True)
class RoutingFacts:
    """Who asks for what, and what is in service."""

    user: str
    conversation: str
    champion: str
    models: Mapping[str, str]
    """Name → id of every model that may be asked for; ids are understood as well."""
    specialists: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name → id of the model of every specialist beside the personal one."""
    requested: str | None = None
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes. `experiment` is set for both arms of a canary."""

    specialist: str
    model: str
    experiment: str | None
    because: str


@dataclass(frozen=True, slots=True)
class UnknownModel:
    """Nobody answers to that name."""

    because: str


def route(facts: RoutingFacts) -> Route | UnknownModel:
    """Where a message goes; the same conversation stays with its arm as long as a canary runs."""
    if facts.requested is not None and facts.requested not in ALIASES:
        return _by_name(facts, facts.requested)
    if facts.canary is None:
        return Route(PERSONAL, facts.champion, None, "the champion answers")
    canary = facts.canary
    if bucket(facts.user, facts.conversation, canary.experiment) < canary.share:
        because = f"the conversation is in the {canary.share:.0%} that try the candidate"
        return Route(PERSONAL, canary.candidate, canary.experiment, because)
    because = "the conversation is among those that keep the champion"
    return Route(PERSONAL, facts.champion, canary.experiment, because)


def _by_name(facts: RoutingFacts, requested: str) -> Route | UnknownModel:
    if requested in facts.specialists:
        because = f"specialist {requested!r} was asked for by name"
        return Route(requested, facts.specialists[requested], None, because)
    model = facts.models.get(requested)
    if model is None and requested in facts.models.values():
        model = requested
    if model is None:
        known = ", ".join(sorted({*facts.models, *facts.specialists, "soma"}))
        return UnknownModel(f"there is no model {requested!r}; there are {known}")
    return Route(PERSONAL, model, None, f"model {requested!r} was asked for by name")


def name_problem(name: str) -> str | None:
    """Why a specialist cannot be called so; None if it can."""
    if name in {*ALIASES, PERSONAL} or _OWN.fullmatch(name):
        return f"{name!r} is a name that SOMA itself answers to; choose another"
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name; use small letters, digits and '-', a letter first, 40 at most"
    return None


def bucket(user: str, conversation: str, experiment: str) -> float:
    """A number in [0, 1) that keeps a conversation in its arm and differs by experiment."""
    digest = sha256(f"{experiment}\x00{user}\x00{conversation}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
