"""What the workshop works with on Ray."""

from typing import ClassVar

import ray

from arbiters.ports import Examiner, Trainer
from soma_agents.evaluation.examiner import LocalExaminer
from soma_agents.settings import Settings
from soma_agents.training.trainer import LocalTrainer


class ClusterTrainer(LocalTrainer):
    """Trains with Ray Train on this cluster, from a driver process of its own.

    Nothing here loads torch: the arbiter's process would be three times its size.
    """

    module: ClassVar[str] = "soma_agents.training.ray_train"

    def _environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def workshop_tools(name: str, settings: Settings) -> tuple[Trainer | None, Examiner | None]:
    """Trainer and examiner for the workshop; nothing for the others."""
    if name != "workshop":
        return None, None
    return ClusterTrainer(settings), LocalExaminer(settings)
