"""What a comparing process is asked: known without loading torch."""

from pydantic import BaseModel, ConfigDict

from arbiters.model_events import ComparisonFailed, ComparisonFinished, ComparisonRequested
from soma_agents.settings import Settings


class Comparison(BaseModel):
    """A comparison request with all that its process must know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: ComparisonRequested
    settings: Settings
    cores: tuple[int, ...]


class Answer(BaseModel):
    """How a comparison ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finished: ComparisonFinished | None = None
    failed: ComparisonFailed | None = None
