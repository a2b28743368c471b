"""What happens in SOMA, in the order of a model's life: from a round to a verdict, and after."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from arbiters.events import Event, Value


class MetricChange(Value):
    """A measure before (champion) and after (candidate), with what was declared about it."""

    name: str
    unit: str = ""
    before: float
    after: float
    interval: tuple[float, float]
    """Confidence interval of after - before, oriented so that a positive change is better."""
    margin: float
    """Smallest improvement that counts (target) or largest loss that is borne (guardrail)."""
    items: int
    ok: bool
    item: str = ""
    """The worst item, where each is judged by itself: `before` and `after` are its."""


class RoundRequested(Event):
    """A person or the schedule asks for a training round now."""

    by: Literal["user", "schedule"]


class RoundStarted(Event):
    """The coordinator began round `round`; `upto` is the last log offset whose material counts."""

    round: str
    because: str
    upto: int
    new_messages: int


class DatasetExported(Event):
    """The exporter wrote an immutable dataset; `dataset` is its content hash."""

    round: str
    dataset: str
    path: str
    train: int
    validation: int
    heldout: int
    preferences: int
    targets_by_kind: dict[str, int]


class DatasetRefused(Event):
    """There is not enough material to learn from or to judge by."""

    round: str
    because: str


class TrainingRequested(Event):
    """The coordinator asks the workshop to train a candidate."""

    round: str
    dataset: str
    path: str
    parent: str
    """Id of the base model; adapters are always trained fresh from the base."""


class TrainingProgressed(Event):
    """Steps done of all steps, with the newest losses in nats a target token."""

    round: str
    step: int
    steps: int
    train_loss: float
    validation_loss: float | None = None
    tokens_per_second: float


class TrainingFinished(Event):
    """An adapter was written; `model` is its content hash."""

    round: str
    model: str
    path: str
    hyperparameters: dict[str, Any]
    code_version: str
    steps: int
    tokens: int
    seconds: float
    train_loss: float
    validation_loss: float


class TrainingFailed(Event):
    """The workshop gave up on a training run."""

    round: str
    because: str


class CandidateRegistered(Event):
    """The registry knows a new model version, with its lineage."""

    round: str
    model: str
    name: str
    dataset: str
    base: str
    path: str


class ComparisonRequested(Event):
    """The evaluation asks the workshop to replay held-out material.

    `rules` was stored before the first observation and decides afterwards.
    """

    round: str
    experiment: str
    champion: str
    candidate: str
    dataset_path: str
    rules: dict[str, Any]


class Observation(Value):
    """One held-out item seen by both models. Lower is better for bits per byte."""

    suite: str
    item: str
    champion: float
    candidate: float


class ComparisonFinished(Event):
    """Every item of every suite, champion and candidate side by side."""

    round: str
    experiment: str
    candidate: str
    observations: tuple[Observation, ...]
    samples: tuple[dict[str, str], ...] = ()
    """A few held-out prompts with both answers: `prompt`, `champion`, `candidate`, `reference`."""
    seconds: float


class ComparisonFailed(Event):
    """The candidate could not be measured: broken weights, NaN, a crash."""

    round: str
    experiment: str
    candidate: str
    because: str


class CanaryStarted(Event):
    """The candidate answers a sticky share of live traffic."""

    round: str
    experiment: str
    champion: str
    candidate: str
    share: float


class EvaluationFinished(Event):
    """The verdict on a candidate, with everything it rests on."""

    round: str
    experiment: str
    candidate: str
    verdict: Literal["promoted", "rejected", "held"]
    because: str
    target: MetricChange | None = None
    guardrails: tuple[MetricChange, ...] = ()
    canary: MetricChange | None = None
    seconds: float


class ModelPromoted(Event):
    """The champion pointer moved to `model`; `previous` stays loaded for the watch window."""

    model: str
    name: str
    previous: str
    round: str | None = None
    because: str
    watch_until: datetime | None = None


class CandidateRejected(Event):
    """A candidate is not to be used."""

    round: str
    model: str
    because: str


class CandidateHeld(Event):
    """No decision: neither better nor worse could be shown."""

    round: str
    model: str
    because: str


class PromotionRequested(Event):
    """A person asks to make a model version the champion."""

    model: str


class RollbackRequested(Event):
    """A person asks to undo the last promotion."""

    because: str = "asked by the user"


class ModelRolledBack(Event):
    """The champion pointer moved back from `model` to `restored`."""

    model: str
    restored: str
    restored_name: str
    automatic: bool
    because: str


class SpecialistOffered(Event):
    """A person offers a base model, as it lies among the models, to be asked for by name."""

    name: str
    model: str
    dataset: str = ""
    """Identity of the corpus that it was made from, if its file tells."""
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class SpecialistRegistered(Event):
    """A base model answers from now on whoever asks for it by name."""

    name: str
    model: str
    dataset: str = ""


class SpecialistUnwanted(Event):
    """A person asks that a specialist answer nobody any more."""

    name: str


class SpecialistRetired(Event):
    """A specialist answers nobody any more."""

    name: str


class RequestRefused(Event):
    """What a person asked for could not be done; the envelope's cause says which request."""

    because: str


class RoundFinished(Event):
    """A round is over; whatever came of it."""

    round: str
    verdict: Literal["promoted", "rejected", "held", "failed"]
    because: str
    seconds: float
