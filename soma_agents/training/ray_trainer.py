"""Starting a Ray Train run: without torch, which would triple the caller's process."""

from typing import ClassVar

import ray

from soma_agents.training.trainer import LocalTrainer


class RayTrainer(LocalTrainer):
    """Implements `arbiters.ports.Trainer` with Ray Train; to be used where Ray runs.

    The run has a driver of its own, `soma_agents.training.ray_train`: ending that process ends its
    controller and workers, whatever state they are in.
    """

    module: ClassVar[str] = "soma_agents.training.ray_train"

    def _environment(self) -> dict[str, str]:
        if not ray.is_initialized():
            return {}
        return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
