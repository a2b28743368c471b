"""Checkpoints of a run that several workers write, each its own part, and any number reads."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from arbiters.errors import SomaError
from soma_agents.pretraining.sharding import rows
from soma_agents.training.checkpoints import Checkpoint, Checkpoints, Tensors
from soma_agents.training.group import Workers


class Shards:
    """What belongs together is of the same step and of the same number of workers.

    Of workers that have the weights alike the first one keeps them; of a parted model each keeps
    its rows. Either kind goes on from what the other left. Every worker must see the directory.
    """

    def __init__(
        self, directory: Path, run: str, workers: Workers, *, sharded: bool = False
    ) -> None:
        self._directory = directory
        self._run = run
        self._workers = workers
        self._sharded = sharded

    def _of(self, rank: int) -> Checkpoints:
        return Checkpoints(self._directory / f"worker-{rank}", self._run)

    def save(
        self, state: Mapping[str, Any], own: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> None:
        """Keep what this worker has of the optimiser's state, and of the weights.

        Raises:
            StorageFullError: the disk is full; the checkpoints before stand.
        """
        rank, count = self._workers.rank, self._workers.count
        tensors = {**own, **(weights if self._sharded or rank == 0 else {})}
        self._of(rank).save(Checkpoint({**state, "workers": count}, tensors))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint of which every worker's part is whole, put together.

        Raises:
            SomaError: the workers find different ones.
        """
        found = self._newest()
        step = torch.tensor([found.state["step"] if found else 0.0])
        first = step.clone()
        self._workers.share([first], [0])
        apart = (step - first).abs()
        self._workers.sum([apart])
        if apart:
            raise SomaError(f"workers find different checkpoints in {self._directory}; share it")
        return found

    def _newest(self) -> Checkpoint | None:
        for first in self._of(0).whole():
            parts = [first]
            for rank in range(1, first.state["workers"]):
                parts += [part for part in self._of(rank).whole() if _belong(part, first)][:1]
            if len(parts) == first.state["workers"]:
                worker = (self._workers.rank, self._workers.count) if self._sharded else (0, 1)
                files = cast("list[Tensors]", [part.tensors for part in parts])
                tensors = _Together(files, *worker)
                state = {name: v for name, v in first.state.items() if name != "workers"}
                return Checkpoint(state, tensors)
        return None


def _belong(part: Checkpoint, first: Checkpoint) -> bool:
    return all(part.state[name] == first.state[name] for name in ("step", "workers"))


class _Together(Mapping[str, Tensor]):
    """The rows that one worker holds of tensors whose rows lie one behind another in some files."""

    def __init__(self, files: Sequence[Tensors], rank: int, workers: int) -> None:
        self._files = files
        self._rank = rank
        self._workers = workers

    def __getitem__(self, name: str) -> Tensor:
        files = [file for file in self._files if name in file]
        if not files:
            raise KeyError(name)
        lengths = [file.length(name) for file in files]
        if lengths[0] is None:  # a number, which all have alike
            return files[0][name]
        wanted = rows(sum(filter(None, lengths)), self._rank, self._workers)
        parts, start = [], 0
        for file, length in zip(files, lengths, strict=True):
            first, last = (
                min(max(end - start, 0), length or 0) for end in (wanted.start, wanted.stop)
            )
            parts.append(file.rows(name, slice(first, last)))
            start += length or 0
        return torch.cat(parts)

    def __contains__(self, name: object) -> bool:
        return any(name in file for file in self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for file in self._files for name in file))

    def __len__(self) -> int:
        return len({name for file in self._files for name in file})
