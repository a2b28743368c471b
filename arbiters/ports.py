"""Every effect an arbiter may have on the world, as protocols. `soma_agents` implements them.

What arbiters remember is in `arbiters/stores.py`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from arbiters.envelope import Envelope
from arbiters.model_events import (
    ComparisonFailed,
    ComparisonFinished,
    ComparisonRequested,
    TrainingFailed,
    TrainingFinished,
    TrainingProgressed,
    TrainingRequested,
)
from arbiters.records import Batch, DatasetRef, Example

# --- time and names ------------------------------------------------------------------------


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Wall-clock time, aware, UTC."""
        ...


class Ids(Protocol):
    """Where identifiers come from."""

    def new(self) -> str:
        """A fresh UUIDv7 (RFC 9562), so that ids sort by time."""
        ...


# --- the log -------------------------------------------------------------------------------


class EventLog(Protocol):
    """The durable, append-only truth. Offsets start at 1 and have no gaps."""

    async def append(self, envelopes: Sequence[Envelope]) -> list[int]:
        """Store envelopes in order and return their offsets once they are durable.

        An envelope whose `idempotency` is known is dropped; its first offset is returned.

        Raises:
            BusyError: too many wait already; nothing of the group was stored.
            InvalidError: one bears another's id, or cannot be stored; nothing of the group was.
            StorageFullError: the disk is full; nothing of the group was stored.
        """
        ...

    async def read(
        self, after: int, *, limit: int = 500, types: frozenset[str] | None = None, wait: float = 0
    ) -> Batch:
        """Up to `limit` envelopes with offset > `after`, of `types` (None: all).

        With `wait` > 0, stays up to so many seconds until there is one. Erased envelopes are left
        out: nobody hears them again.
        """
        ...

    async def end(self) -> int:
        """Offset of the newest envelope, 0 when empty."""
        ...

    async def find(self, event: str) -> Envelope | None:
        """The envelope with this id."""
        ...

    async def caused_by(self, event: str) -> list[Envelope]:
        """The envelopes whose `cause` is this id, in log order."""
        ...

    async def erase(self, events: Sequence[str]) -> int:
        """Remove the payloads of these events for good and return how many had one.

        The chain of hashes still verifies: it covers each payload's hash, not the payload.
        """
        ...

    async def verify(self) -> int:
        """Check the hash chain from the first envelope to the last and return its length.

        Raises:
            CorruptError: names the first offset at which the chain breaks.
        """
        ...


# --- texts ---------------------------------------------------------------------------------


class Measures(Protocol):
    """Computed measures of a text: see `soma_agents.persona.measures` for each and its source."""

    def of(self, text: str) -> Mapping[str, float]:
        """Name → value, e.g. `sentiment`, `words`, `reading_grade`, `emoji_per_word`."""
        ...


# --- training ------------------------------------------------------------------------------


class DatasetWriter(Protocol):
    """Writes immutable, hashed datasets."""

    async def write(
        self, splits: Mapping[str, Sequence[Example]], manifest: Mapping[str, Any]
    ) -> DatasetRef:
        """Write chat JSONL, Parquet, preference pairs and the manifest (last).

        `splits` has `train`, `validation` and `heldout`. The same content gives the same id.
        """
        ...


class Trainer(Protocol):
    """Trains adapters. Calling again for the same round resumes from its last checkpoint."""

    def train(
        self, request: TrainingRequested
    ) -> AsyncIterator[TrainingProgressed | TrainingFinished | TrainingFailed]:
        """Progress, then exactly one TrainingFinished or TrainingFailed."""
        ...


class Examiner(Protocol):
    """Replays held-out material through champion and candidate."""

    async def compare(self, request: ComparisonRequested) -> ComparisonFinished | ComparisonFailed:
        """Both models on the same items. Calling again does the work again."""
        ...
