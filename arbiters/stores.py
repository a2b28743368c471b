"""What arbiters remember, as protocols: each in its own database. `soma_agents` implements them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from arbiters.envelope import Envelope
from arbiters.records import (
    ConversationSummary,
    DeadLetter,
    ExperimentState,
    ModelVersion,
    PersonalityRevision,
    Pointer,
    RoundState,
    StoredFact,
    StoredFeedback,
    StoredMessage,
)

# --- what an arbiter remembers of its own work ---------------------------------------------


class Ledger(Protocol):
    """An arbiter's cursor, outbox and failures, in the same database as its state."""

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """All that is written inside, here and in the arbiter's stores, happens or does not."""
        ...

    async def cursor(self) -> int:
        """Offset of the last envelope handled, 0 at first."""
        ...

    async def advance(self, offset: int, said: Sequence[Envelope]) -> None:
        """Move the cursor (never back), put `said` into the outbox, forget attempts up to here.

        To be called inside a transaction.
        """
        ...

    async def outbox(self) -> list[Envelope]:
        """What was said and is not yet known to be in the log, in order."""
        ...

    async def sent(self, envelopes: Sequence[Envelope]) -> None:
        """These are in the log now: drop them from the outbox."""
        ...

    async def attempt(self, offset: int) -> int:
        """Count, durably, one more attempt at `offset` and return how many there were before."""
        ...

    async def forgive(self, offset: int) -> None:
        """Take back an attempt that was broken off: by shutting down or by a full disk."""
        ...

    async def bury(self, letter: DeadLetter) -> None:
        """Keep an event that could not be handled."""
        ...

    async def dead_letters(self) -> list[DeadLetter]:
        """Every buried event, oldest first."""
        ...

    async def exhume(self, event: str) -> Envelope | None:
        """Take a buried event out for another try."""
        ...


# --- conversations -------------------------------------------------------------------------


class ConversationStore(Protocol):
    """Every message for ever, by tenant and user."""

    async def add_message(self, tenant: str, user: str, message: StoredMessage) -> bool:
        """Keep a message; False when its id is known."""
        ...

    async def add_conversation(
        self,
        tenant: str,
        user: str,
        conversation: str,
        *,
        source: str,
        title: str,
        digest: str,
        at: datetime,
    ) -> bool:
        """Open a conversation; False when the user has one with this id or digest."""
        ...

    async def add_feedback(self, tenant: str, user: str, feedback: StoredFeedback) -> bool:
        """Keep a judgement; False when its id is known."""
        ...

    async def delete(self, tenant: str, user: str, conversation: str) -> bool:
        """Remove a conversation with its messages and feedback; False when there is none."""
        ...

    async def messages(
        self,
        tenant: str,
        user: str,
        conversation: str,
        *,
        limit: int = 200,
        before: str | None = None,
    ) -> list[StoredMessage]:
        """The newest `limit` messages (before message id `before`), oldest first."""
        ...

    async def conversations(
        self, tenant: str, user: str, *, limit: int = 50, offset: int = 0
    ) -> list[ConversationSummary]:
        """Newest first."""
        ...

    async def search(
        self, tenant: str, user: str, words: str, *, limit: int = 20
    ) -> list[StoredMessage]:
        """Messages that contain every one of the words, best match first."""
        ...

    async def mentions(
        self, tenant: str, user: str, beginnings: Sequence[str], *, apart_from: str, limit: int = 20
    ) -> list[StoredMessage]:
        """What the user wrote outside a conversation with words that begin so; best match first.

        Only the user's own words: nothing imported, nothing of others.
        """
        ...

    async def newest(self, tenant: str, user: str, *, limit: int) -> list[StoredMessage]:
        """The last `limit` messages of all conversations, newest first."""
        ...

    async def feedback(self, tenant: str, user: str, target: str) -> list[StoredFeedback]:
        """Judgements of an inference or a conversation, oldest first."""
        ...

    async def inference(self, tenant: str, user: str, inference: str) -> StoredMessage | None:
        """The reply that an inference gave."""
        ...

    async def statistics(self, tenant: str, user: str) -> dict[str, int]:
        """Counts: `conversations`, `messages`, `words`, `feedback`, and per role."""
        ...


# --- people and personality ----------------------------------------------------------------


class ProfileStore(Protocol):
    """What is known of each person; one value a subject, the older ones kept as history."""

    async def put(self, tenant: str, user: str, fact: StoredFact) -> None:
        """Keep a fact; it replaces the one with the same subject."""
        ...

    async def forget(self, tenant: str, user: str, subject: str) -> bool:
        """Remove a subject with its history; False when there is none."""
        ...

    async def facts(self, tenant: str, user: str) -> list[StoredFact]:
        """Current facts, by subject."""
        ...

    async def history(self, tenant: str, user: str, subject: str) -> list[StoredFact]:
        """Every value a subject had, oldest first."""
        ...


class PersonalityStore(Protocol):
    """The personality towards each user, with its whole history."""

    async def current(self, tenant: str, user: str) -> PersonalityRevision | None:
        """The newest revision."""
        ...

    async def add(self, tenant: str, user: str, revision: PersonalityRevision) -> None:
        """Append a revision."""
        ...

    async def history(
        self, tenant: str, user: str, *, limit: int = 50
    ) -> list[PersonalityRevision]:
        """Newest first."""
        ...

    async def note(self, tenant: str, user: str, name: str, values: Mapping[str, float]) -> None:
        """Keep working values under a name, in place of older ones.

        Of each user the `NOTES_KEPT` names noted last are kept.
        """
        ...

    async def noted(self, tenant: str, user: str, name: str) -> Mapping[str, float] | None:
        """The values under a name."""
        ...


# --- rounds --------------------------------------------------------------------------------


class RoundStore(Protocol):
    """The coordinator's memory: messages counted, rounds run."""

    async def count(self, offset: int, messages: int) -> None:
        """So many more messages came at this offset."""
        ...

    async def messages_since(self, offset: int) -> int:
        """Messages counted after this offset."""
        ...

    async def save(self, state: RoundState) -> None:
        """Insert or update a round."""
        ...

    async def current(self) -> RoundState | None:
        """The round that is not finished, if there is one."""
        ...

    async def latest(self) -> RoundState | None:
        """The round that started last."""
        ...

    async def rounds(self, *, limit: int = 50) -> list[RoundState]:
        """Newest first."""
        ...


# --- models --------------------------------------------------------------------------------


class Registry(Protocol):
    """The only place that flips the champion pointer; by compare-and-swap."""

    async def register(self, version: ModelVersion) -> ModelVersion:
        """Add a version and return it under its final name; a known id is returned as it is."""
        ...

    async def model(self, model: str) -> ModelVersion | None:
        """By id or by name."""
        ...

    async def models(self) -> list[ModelVersion]:
        """Newest first."""
        ...

    async def set_stage(self, model: str, stage: str) -> None:
        """Move a version to another stage; the champion's stage follows the pointer alone."""
        ...

    async def pointer(self) -> Pointer:
        """Who is in service.

        Raises:
            NotFoundError: no model was ever installed.
        """
        ...

    async def add_specialist(self, version: ModelVersion) -> None:
        """Let a base model be asked for by its name; again after it was retired.

        Raises:
            ConflictError: another model has or had the name.
        """
        ...

    async def retire_specialist(self, name: str) -> None:
        """Let nobody ask for a specialist any more.

        Raises:
            NotFoundError: none of that name may be asked for.
        """
        ...

    async def specialists(self) -> list[ModelVersion]:
        """Those that may be asked for, by name."""
        ...

    async def install(self, version: ModelVersion, *, at: datetime) -> None:
        """Make the first model (the base) champion; nothing when there is a pointer."""
        ...

    async def swap(
        self, *, expected: str, champion: str, at: datetime, watch_until: datetime | None = None
    ) -> Pointer:
        """Point to `champion` if the champion is `expected`.

        Raises:
            ConflictError: another model is champion now.
            NotFoundError: `champion` is not registered.
        """
        ...


class ExperimentStore(Protocol):
    """What is being compared and what came of it."""

    async def save(self, experiment: ExperimentState) -> None:
        """Insert or update."""
        ...

    async def experiment(self, experiment: str) -> ExperimentState | None:
        """By id."""
        ...

    async def running(self) -> list[ExperimentState]:
        """Those that are not finished."""
        ...

    async def finished(self, *, limit: int = 50) -> list[ExperimentState]:
        """Those with a verdict; the one that started last comes first."""
        ...

    async def next_ordinal(self) -> int:
        """1 for the first experiment ever: error is controlled over successive candidates."""
        ...

    async def note_inference(self, inference: str, experiment: str, model: str) -> None:
        """Remember which model gave a reply, so that feedback finds its arm."""
        ...

    async def inference(self, inference: str) -> tuple[str, str] | None:
        """(experiment or "", model) of a reply."""
        ...

    async def note_watch(self, model: str, value: float) -> None:
        """Keep a live judgement of a model in service, in [-1, 1]."""
        ...

    async def watched(self, model: str) -> list[float]:
        """Live judgements of a model, oldest first."""
        ...
