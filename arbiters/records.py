"""What is kept: the values that go through the ports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from arbiters.envelope import Envelope
from arbiters.events import ChatMessage


@dataclass(frozen=True, slots=True)
class Batch:
    """Envelopes after a cursor, in log order; `end` is the offset up to which was looked."""

    envelopes: Sequence[Envelope]
    end: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that an arbiter could not handle."""

    envelope: Envelope
    attempts: int
    error: str
    at: datetime


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it is kept. `inference` and `model` are empty for a person's words."""

    id: str
    conversation: str
    role: Literal["system", "user", "assistant"]
    content: str
    at: datetime
    trust: str
    inference: str = ""
    model: str = ""
    specialist: str = ""


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """A judgement as it is kept."""

    id: str
    target: str
    target_kind: Literal["inference", "conversation"]
    name: str
    value: float | str
    source: str
    rationale: str
    at: datetime


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """A conversation in a list."""

    id: str
    title: str
    source: str
    messages: int
    started_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class StoredFact:
    """Something a person said about themselves, and where."""

    id: str
    subject: str
    value: str
    kind: Literal["fact", "preference"]
    quote: str
    message: str
    at: datetime


@dataclass(frozen=True, slots=True)
class PersonalityRevision:
    """The personality at one time; dimensions in [0, 1]."""

    revision: int
    dimensions: Mapping[str, float]
    messages: int
    because: str
    at: datetime


NOTES_KEPT = 200


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to learn from or to judge by. The last message is the target reply.

    `rejected` is the losing reply of a preference pair. `events` are the ids of the log events it
    came from, `group` what must stay on one side of the split (a conversation or a fact).
    """

    id: str
    kind: Literal["demonstration", "liked", "imported", "fact", "preference"]
    messages: tuple[ChatMessage, ...]
    group: str
    events: tuple[str, ...]
    user: str
    trust: str
    at: datetime
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A written dataset: `id` is the hash of its content."""

    id: str
    path: str
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class RoundState:
    """Where a training round is; kept durably by the coordinator."""

    id: str
    step: Literal["exporting", "training", "evaluating", "canary", "finished"]
    started_at: datetime
    upto: int
    progress: float = 0.0
    verdict: str | None = None
    because: str = ""
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model the registry knows. `id` is a content hash, `name` is never reused.

    `name` is soma-vN, or that of a specialist. `path` is the adapter's directory, empty for a base
    model itself.
    """

    id: str
    name: str
    base: str
    path: str
    stage: Literal["candidate", "champion", "retired", "rejected", "held", "specialist"]
    dataset: str
    round: str
    hyperparameters: Mapping[str, Any]
    code_version: str
    registered_at: datetime


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which model is in service; `previous` can be returned to until `watch_until` and after."""

    champion: str
    previous: str | None
    since: datetime
    watch_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ExperimentState:
    """One candidate against the champion, from comparison to verdict.

    `rules` are stored before the first observation. `canary` holds one number a live judgement:
    (arm, value in [-1, 1]) with arm "champion" or "candidate".
    """

    id: str
    round: str
    champion: str
    candidate: str
    ordinal: int
    rules: Mapping[str, Any]
    phase: Literal["offline", "canary", "finished"]
    started_at: datetime
    canary: tuple[tuple[str, float], ...] = ()
    offline: Mapping[str, Any] = field(default_factory=dict[str, Any])
    receipt: Mapping[str, Any] | None = None
