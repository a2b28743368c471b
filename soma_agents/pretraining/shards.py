"""Checkpoints of a run that several workers write, each its own part, and any number reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from soma_agents.training.checkpoints import Checkpoint, Checkpoints
from soma_agents.training.loop import Workers


class Shards:
    """What belongs together is of the same step and of the same number of workers.

    The first worker's part holds what all have alike. Every worker must see the directory.
    """

    def __init__(self, directory: Path, run: str, workers: Workers) -> None:
        self._directory = directory
        self._run = run
        self._workers = workers

    def _of(self, rank: int) -> Checkpoints:
        return Checkpoints(self._directory / f"worker-{rank}", self._run)

    def save(
        self, state: Mapping[str, Any], own: Mapping[str, Tensor], alike: Mapping[str, Tensor]
    ) -> None:
        """Keep this worker's `own` tensors; of what is alike the first one's.

        Raises:
            StorageFullError: the disk is full; the checkpoints before stand.
        """
        rank, count = self._workers.rank, self._workers.count
        tensors = {**own, **(alike if rank == 0 else {})}
        self._of(rank).save(Checkpoint({**state, "workers": count}, tensors))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint of which every worker's part is whole, put together."""
        for first in self._of(0).whole():
            parts = [first]
            for rank in range(1, first.state["workers"]):
                parts += [part for part in self._of(rank).whole() if _belong(part, first)][:1]
            if len(parts) == first.state["workers"]:
                tensors = {name: t for part in parts for name, t in part.tensors.items()}
                state = {name: v for name, v in first.state.items() if name != "workers"}
                return Checkpoint(state, tensors)
        return None


def _belong(part: Checkpoint, first: Checkpoint) -> bool:
    return all(part.state[name] == first.state[name] for name in ("step", "workers"))
