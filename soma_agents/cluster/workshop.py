"""What the workshop works with on Ray."""

from arbiters.ports import Examiner, Trainer
from soma_agents.evaluation.examiner import LocalExaminer
from soma_agents.settings import Settings
from soma_agents.training.ray_trainer import RayTrainer


def workshop_tools(name: str, settings: Settings) -> tuple[Trainer | None, Examiner | None]:
    """Trainer and examiner for the workshop; nothing for the others."""
    if name != "workshop":
        return None, None
    return RayTrainer(settings), LocalExaminer(settings)
