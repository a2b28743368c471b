"""Fakes of every port, in memory and without surprises: the reference for the real ones.

They are shipped so that whoever writes an arbiter can test it: no Ray, no database, no files.
The one package here that re-exports, because a test wants its tools from one place.
"""

from arbiters.testing.bus import (
    FakeClock,
    Memory,
    MemoryEventLog,
    MemoryLedger,
    SequentialIds,
    enveloped,
    react,
)
from arbiters.testing.learning import (
    FakeExaminer,
    FakeMeasures,
    FakeTrainer,
    MemoryDatasetWriter,
    MemoryExperimentStore,
    MemoryRegistry,
    MemoryRoundStore,
    dialogue,
)
from arbiters.testing.stores import (
    MemoryConversationStore,
    MemoryPersonalityStore,
    MemoryProfileStore,
)

__all__ = [
    "FakeClock",
    "FakeExaminer",
    "FakeMeasures",
    "FakeTrainer",
    "Memory",
    "MemoryConversationStore",
    "MemoryDatasetWriter",
    "MemoryEventLog",
    "MemoryExperimentStore",
    "MemoryLedger",
    "MemoryPersonalityStore",
    "MemoryProfileStore",
    "MemoryRegistry",
    "MemoryRoundStore",
    "SequentialIds",
    "dialogue",
    "enveloped",
    "react",
]
