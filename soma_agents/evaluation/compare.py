"""One comparison as a process of its own.

`python -m soma_agents.evaluation.compare REQUEST.json ANSWER.json` replays held-out material and
the frozen suites through champion and candidate and writes what was seen. It decides nothing.
"""

import asyncio
import sys
import time
from pathlib import Path

import structlog
import torch

from arbiters.errors import SomaError
from arbiters.model_events import ComparisonFailed, ComparisonFinished, Observation
from soma_agents.evaluation.arms import Arm, load_arm
from soma_agents.evaluation.replay import Replay, choose, side_by_side
from soma_agents.evaluation.request import Answer, Comparison
from soma_agents.evaluation.trial import trial
from soma_agents.evaluation.triggers import observe, words_to_try
from soma_agents.language.apart import settle
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.precision import Format, format_for
from soma_agents.settings import Settings
from soma_agents.storage.datasets import Dataset, read_dataset
from soma_agents.storage.files import write_atomic

_log = structlog.get_logger(__name__)


def compare(work: Comparison) -> Answer:
    """Measure; what cannot be measured for a reason is an answer, too."""
    request = work.request
    try:
        return Answer(finished=_measure(work))
    except SomaError as error:
        failed = ComparisonFailed(
            round=request.round,
            experiment=request.experiment,
            candidate=request.candidate,
            because=str(error),
        )
        return Answer(failed=failed)


def _measure(work: Comparison) -> ComparisonFinished:
    started = time.perf_counter()
    request, settings = work.request, work.settings
    served, judged = settings.engine.dtype, format_for(settings.engine.dtype)
    model = _load(settings, judged)
    champion, candidate = (
        load_arm(model, version, settings) for version in (request.champion, request.candidate)
    )
    dataset = read_dataset(Path(request.dataset_path))
    observations = _replayed(work, model, dataset, champion, candidate)
    observations += _with_words(work, model, dataset, champion, candidate)
    if served != judged:  # words are said as in service
        del model  # first, so that both are never in memory
        model = _load(settings, served)
    spoken, samples = asyncio.run(_spoken(work, model, dataset, champion, candidate))
    return ComparisonFinished(
        round=request.round,
        experiment=request.experiment,
        candidate=request.candidate,
        observations=(*observations, *spoken),
        samples=samples,
        seconds=time.perf_counter() - started,
    )


def _load(settings: Settings, format_: Format) -> LanguageModel:
    return load_model(settings.engine.model, dtype=getattr(torch, format_))


def _replayed(
    work: Comparison, model: LanguageModel, dataset: Dataset, champion: Arm, candidate: Arm
) -> list[Observation]:
    replay = Replay(model, context=model.config.context)
    items = work.settings.evaluation.max_items
    targets = choose(replay.fitting(dataset.targets("heldout")), at_most=items)
    pairs = choose(replay.fitting(dataset.preferences("heldout")), at_most=items)
    measures = {
        "target": replay.target(targets),
        "preference": replay.preference(pairs),
        "forgetting": replay.forgetting(),
        "safety": replay.safety(),
    }
    observations: list[Observation] = []
    for suite, score in measures.items():
        started = time.perf_counter()
        observations += side_by_side(suite, score, champion, candidate)
        _log.info("suite measured", suite=suite, seconds=round(time.perf_counter() - started, 1))
    return observations


def _with_words(
    work: Comparison, model: LanguageModel, dataset: Dataset, champion: Arm, candidate: Arm
) -> list[Observation]:
    started = time.perf_counter()
    words = words_to_try(dataset, at_most=work.settings.evaluation.trigger_words)
    observations = observe(model, words, champion, candidate)
    seconds = round(time.perf_counter() - started, 1)
    _log.info("words tried", words=len(observations), seconds=seconds)
    return observations


async def _spoken(
    work: Comparison, model: LanguageModel, dataset: Dataset, champion: Arm, candidate: Arm
) -> tuple[list[Observation], tuple[dict[str, str], ...]]:
    examples = choose(dataset.targets("heldout"), at_most=work.settings.evaluation.max_items)
    started = time.perf_counter()
    async with trial(model, champion, candidate, threads=len(work.cores)) as both:
        observations = [*await both.personality(), *await both.latency()]
        samples = await both.samples(examples)
    _log.info("answers compared", seconds=round(time.perf_counter() - started, 1))
    return observations, samples


def main(arguments: list[str]) -> None:
    """Answer the request in the first file; write into the second."""
    work = Comparison.model_validate_json(Path(arguments[0]).read_bytes())
    settle(work.cores)
    write_atomic(Path(arguments[1]), compare(work).model_dump_json().encode())


if __name__ == "__main__":
    main(sys.argv[1:])
