"""What a training process is asked, and what it leaves behind: known without loading torch."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from arbiters.errors import InvalidError
from arbiters.model_events import TrainingFailed, TrainingFinished, TrainingRequested
from soma_agents.settings import Settings

REQUEST, PROGRESS, RESULT, LOCK = "request.json", "progress.jsonl", "result.json", "lock"
PRECISION = "precision"
"""A file in the run's directory that holds the number format that the run began with."""
STOP = "stop"
"""A file of this name in the run's directory ends the run at its next step."""


class Job(BaseModel):
    """A training request with all that its process must know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: TrainingRequested
    settings: Settings
    cores: tuple[int, ...]

    @property
    def directory(self) -> Path:
        """Where the run keeps its checkpoints, progress and result."""
        return run_directory(self.settings, self.request.round)


class Result(BaseModel):
    """How a run ended; a run without a result can go on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finished: TrainingFinished | None = None
    failed: TrainingFailed | None = None


def run_directory(settings: Settings, run: str) -> Path:
    """The directory of a training round.

    Raises:
        InvalidError: the round's name is not fit to be a directory's.
    """
    if not run.replace("-", "").replace("_", "").isalnum():
        raise InvalidError(f"round {run!r} cannot name a directory; use letters, digits, - and _")
    return settings.home / "runs" / run


def read_result(run: Path) -> TrainingFinished | TrainingFailed | None:
    """How the run ended, if it did; what was finished must still be there."""
    file = run / RESULT
    if not file.exists():
        return None
    result = Result.model_validate_json(file.read_bytes())
    if result.finished is not None and not Path(result.finished.path).is_dir():
        return None
    return result.finished or result.failed
