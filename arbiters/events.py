"""What happens in SOMA, in the order of a message's life; of a model's in `model_events`.

An event is a frozen value in the past tense. On the bus it travels in an `Envelope`
(arbiters/envelope.py), which says what it is, when and for whom it happened, who said it and which
event caused it.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["system", "user", "assistant"]
Trust = Literal["owner", "imported", "self", "external"]
"""Whose words: the user's own, a file the user imported, SOMA's, or somebody else's."""


class Event(BaseModel):
    """Base of all events: frozen, strict about unknown fields, versioned."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")
    version: ClassVar[int] = 1

    @property
    def type(self) -> str:
        """The event's name on the bus."""
        return type(self).__name__


class Value(BaseModel):
    """Base of the values that events carry."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


# --- the life of a message -----------------------------------------------------------------


class ChatMessage(Value):
    """One turn of a conversation as a model sees it."""

    role: Role
    content: str


class Timings(Value):
    """How long a reply took, in seconds, and how much it was, in tokens."""

    first_token: float
    total: float
    prompt_tokens: int
    completion_tokens: int


class MessageReceived(Event):
    """A person wrote. `context` is what a stateless client sent along before the message."""

    conversation: str
    message: str
    content: str
    trust: Trust = "owner"
    context: tuple[ChatMessage, ...] = ()


class ReplyGiven(Event):
    """A specialist answered; `finish` is OpenAI's finish reason, `cancelled` if the client left."""

    conversation: str
    message: str
    inference: str
    content: str
    model: str
    """Id of the model version that answered (a hash); `specialist` is the role it answered in."""
    specialist: str
    experiment: str | None = None
    config_hash: str
    finish: Literal["stop", "length", "cancelled", "error"]
    token_ids: tuple[int, ...] = ()
    timings: Timings


class ConversationImported(Event):
    """A conversation came from a file. `digest` is of its content: the same is imported once."""

    conversation: str
    digest: str
    source: str
    title: str = ""
    messages: tuple[ChatMessage, ...]
    happened_at: datetime | None = None
    held_out: bool = False
    """True keeps it out of training: it only ever serves as held-out material."""


class ConversationDeleted(Event):
    """A person deleted a conversation: its content is erased everywhere."""

    conversation: str


FeedbackName = Annotated[str, Field(min_length=1, max_length=64)]


class FeedbackGiven(Event):
    """Somebody or something judged a reply or a conversation.

    Names: `rating` (value -1 to 1), `comment` (text), `demonstration` (text: the better answer),
    `preference` (value: id of the inference that is preferred to the target).
    """

    feedback: str
    target: str
    target_kind: Literal["inference", "conversation"]
    name: FeedbackName
    value: float | str
    source: Literal["HUMAN", "JUDGE", "CODE", "IMPLICIT"] = "HUMAN"
    rationale: str = ""


class FactStated(Event):
    """A person said something lasting about themselves; `message` is where."""

    fact: str
    message: str
    subject: str
    """What it is about, as a key: `name`, `home`, `pet.name` … A new value replaces the old."""
    value: str
    kind: Literal["fact", "preference"]
    quote: str


class FactForgotten(Event):
    """A person took a fact back."""

    subject: str


class PersonalityShifted(Event):
    """Interactions moved the personality: dimension → new value in [0, 1]."""

    dimensions: dict[str, float]
    messages: int
    because: str


class PersonalityRestored(Event):
    """A person undid shifts: the personality is as it was at revision `revision`."""

    revision: int
    dimensions: dict[str, float]


# --- time and trouble ----------------------------------------------------------------------


class ClockTicked(Event):
    """The schedule's pulse: maintenance, watch windows and canaries look at the time."""

    at: datetime


class ArbiterFailed(Event):
    """An arbiter could not handle an event and moved on; the event is in the dead letters."""

    arbiter: str
    event: str
    event_type: str
    key: str = ""
    """Key of that event: its conversation, its round or its user."""
    attempts: int
    error: str
