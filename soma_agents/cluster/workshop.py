"""What the workshop works with on Ray."""

from arbiters.ports import Examiner, Trainer
from arbiters.testing.learning import FakeExaminer, FakeTrainer
from soma_agents.settings import Settings


def workshop_tools(name: str, settings: Settings) -> tuple[Trainer | None, Examiner | None]:
    """Trainer and examiner for the workshop; nothing for the others."""
    if name != "workshop":
        return None, None
    return FakeTrainer(), FakeExaminer()
