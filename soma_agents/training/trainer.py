"""Trains adapters in a process of its own and tells how it goes."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import ClassVar

from arbiters.errors import SomaError
from arbiters.model_events import (
    TrainingFailed,
    TrainingFinished,
    TrainingProgressed,
    TrainingRequested,
)
from policies.supervision import share_cores
from soma_agents.language.apart import apart
from soma_agents.settings import Settings
from soma_agents.storage.files import make_directory, write_atomic
from soma_agents.training.request import (
    PROGRESS,
    REQUEST,
    STOP,
    Job,
    read_result,
    run_directory,
)

ATTEMPTS = 3
"""How often a run is started that dies without a word; each goes on from the last checkpoint."""

LOOK_EVERY_S = 0.5
TELL_EVERY_S = 2.0
"""Seconds between two progress events at least."""


class LocalTrainer:
    """Implements `arbiters.ports.Trainer`: the loop in a child process of low priority.

    Closing the iterator ends the process and everything below it; another call for the same
    round goes on from its newest checkpoint, or says at once how it ended.
    """

    module: ClassVar[str] = "soma_agents.training.job"

    def __init__(self, settings: Settings, *, cores: tuple[int, ...] | None = None) -> None:
        """`cores` are those to train on; None is the trainer's share of those there are."""
        self._settings = settings
        self._cores = cores

    async def train(
        self, request: TrainingRequested
    ) -> AsyncGenerator[TrainingProgressed | TrainingFinished | TrainingFailed]:
        """See `Trainer.train`."""
        try:
            run = run_directory(self._settings, request.round)
        except SomaError as error:
            yield TrainingFailed(round=request.round, because=str(error))
            return
        make_directory(run)
        cores = self._cores or _trainer_cores()
        job = Job(request=request, settings=self._settings, cores=cores)
        write_atomic(run / REQUEST, job.model_dump_json().encode())
        (run / STOP).unlink(missing_ok=True)
        status: int | None = None
        for _ in range(ATTEMPTS):
            if (result := read_result(run)) is not None:
                yield result
                return
            async with apart(
                self.module,
                str(run / REQUEST),
                cores=cores,
                log=run / "log",
                environ=self._environment(),
            ) as process:
                async for progress in _follow(process, run):
                    yield progress
                status = process.returncode
            if (run / STOP).exists():
                break
        yield read_result(run) or TrainingFailed(
            round=request.round,
            because=f"stopped by the file {run / STOP}; ask again to go on"
            if (run / STOP).exists()
            else f"the training process ended without a result, {ATTEMPTS} times, "
            f"last with exit status {status!r}; see {run / 'log'}",
        )

    def _environment(self) -> dict[str, str]:
        return {}


def _trainer_cores() -> tuple[int, ...]:
    available = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else range(os.cpu_count() or 1)
    )
    return share_cores(tuple(available), training=True).trainer


async def _follow(
    process: asyncio.subprocess.Process, run: Path
) -> AsyncGenerator[TrainingProgressed]:
    """The newest progress, from time to time, until the process has ended."""
    file = run / PROGRESS
    read = file.stat().st_size if file.exists() else 0
    clock = asyncio.get_running_loop()
    told = -TELL_EVERY_S
    ended = asyncio.ensure_future(process.wait())
    try:
        while not ended.done():
            await asyncio.wait([ended], timeout=LOOK_EVERY_S)
            if not ended.done() and clock.time() - told < TELL_EVERY_S:
                continue
            if (lines := _whole_lines(file, read)) and (newest := lines.splitlines()):
                read += len(lines)
                told = clock.time()
                yield TrainingProgressed.model_validate_json(newest[-1])
    finally:
        ended.cancel()


def _whole_lines(file: Path, start: int) -> bytes:
    if not file.exists():
        return b""
    with file.open("rb") as source:
        source.seek(start)
        text = source.read()
    return text[: text.rfind(b"\n") + 1]
