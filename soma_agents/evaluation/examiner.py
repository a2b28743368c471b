"""Compares champion and candidate in a process of its own."""

import os

from arbiters.model_events import ComparisonFailed, ComparisonFinished, ComparisonRequested
from policies.supervision import share_cores
from soma_agents.evaluation.request import Answer, Comparison
from soma_agents.language.apart import apart
from soma_agents.settings import Settings
from soma_agents.storage.files import write_atomic

ATTEMPTS = 3
"""How often a comparison is started that dies without a word."""


class LocalExaminer:
    """Implements `arbiters.ports.Examiner`: the comparison in a child process of low priority.

    It needs nothing of Ray and is the same on a cluster. Cancelling ends the process.
    """

    def __init__(self, settings: Settings, *, cores: tuple[int, ...] | None = None) -> None:
        """`cores` are those to compute on; None is the trainer's share of those there are."""
        self._settings = settings
        self._cores = cores

    async def compare(self, request: ComparisonRequested) -> ComparisonFinished | ComparisonFailed:
        """See `Examiner.compare`."""
        directory = self._settings.home / "runs" / request.round
        directory.mkdir(parents=True, exist_ok=True)
        question, answer = directory / "comparison.json", directory / "comparison.answer.json"
        cores = self._cores or _examiner_cores()
        work = Comparison(request=request, settings=self._settings, cores=cores)
        write_atomic(question, work.model_dump_json().encode())
        answer.unlink(missing_ok=True)
        log = directory / "comparison.log"
        status: int | None = None
        for _ in range(ATTEMPTS):
            async with apart(
                "soma_agents.evaluation.compare", str(question), str(answer), cores=cores, log=log
            ) as process:
                status = await process.wait()
            if answer.exists():
                found = Answer.model_validate_json(answer.read_bytes())
                if (said := found.finished or found.failed) is not None:
                    return said
        return ComparisonFailed(
            round=request.round,
            experiment=request.experiment,
            candidate=request.candidate,
            because=f"the comparison ended without a result, {ATTEMPTS} times, "
            f"last with exit status {status!r}; see {log}",
        )


def _examiner_cores() -> tuple[int, ...]:
    available = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else range(os.cpu_count() or 1)
    )
    return share_cores(tuple(available), training=True).trainer
