"""Where a training run can go on from: tensors and state in a directory, the manifest last."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arbiters.errors import CorruptError
from soma_agents.storage.files import (
    make_directory,
    put_in_place,
    room_for,
    verify_manifest,
    write_manifest,
)

TENSORS = "tensors.safetensors"
STATE = "state.json"
KEPT = 2
"""Checkpoints kept: the newest, and one more in case it turns out damaged."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State (with its `step`) and tensors of a run after that step."""

    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Tensors(Mapping[str, Tensor]):
    """The tensors of a file, of which only what is asked for is read."""

    def __init__(self, file: Path) -> None:
        self._file = safe_open(file, "pt")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def length(self, name: str) -> int | None:
        """How many rows a tensor has; None of a single number."""
        shape = self._file.get_slice(name).get_shape()
        return shape[0] if shape else None

    def rows(self, name: str, which: slice) -> Tensor:
        """Some rows of a tensor."""
        return self._file.get_slice(name)[which.start : which.stop]


class Checkpoints:
    """The checkpoints of one run; those of another (`run` differs) are not for it."""

    def __init__(self, directory: Path, run: str) -> None:
        self._directory = directory
        self._run = run

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint durably, then drop the oldest.

        Raises:
            StorageFullError: the disk is full; the checkpoints before stand.
        """
        with room_for(self._directory):
            return self._save(checkpoint)

    def _save(self, checkpoint: Checkpoint) -> Path:
        target = self._directory / f"step-{checkpoint.state['step']:08d}"
        partial = self._directory / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        make_directory(partial)
        save_file({name: t.cpu() for name, t in checkpoint.tensors.items()}, partial / TENSORS)
        (partial / STATE).write_text(json.dumps(dict(checkpoint.state)))
        write_manifest(partial, {"run": self._run})
        shutil.rmtree(target, ignore_errors=True)  # damaged or of another run: nobody needs it
        put_in_place(partial, target)
        for old in self._paths()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint of this run."""
        return next(self.whole(), None)

    def whole(self) -> Iterator[Checkpoint]:
        """The whole checkpoints of this run, newest first; damaged ones are left out with a log line."""
        for path in self._paths():
            try:
                yield self._read(path)
            except CorruptError as error:
                _log.warning("checkpoint skipped", path=str(path), because=str(error))

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"), reverse=True)

    def _read(self, path: Path) -> Checkpoint:
        if verify_manifest(path).get("run") != self._run:
            raise CorruptError(f"{path} belongs to a run with other material or settings")
        try:
            return Checkpoint(json.loads((path / STATE).read_text()), Tensors(path / TENSORS))
        except (OSError, ValueError, SafetensorError) as error:
            raise CorruptError(f"{path} cannot be read: {error}") from error
