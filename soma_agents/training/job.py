"""One training run as a process of its own: `python -m soma_agents.training.job REQUEST.json`.

It reads the request, trains, and leaves in the run's directory `progress.jsonl` and `result.json`;
the adapter stands in `$SOMA_HOME/models/<id>/`. Killed, it goes on from its newest checkpoint.
"""

import fcntl
import importlib.metadata
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from arbiters.errors import InvalidError, SomaError
from arbiters.model_events import TrainingFailed, TrainingFinished, TrainingProgressed
from soma_agents.language.apart import settle
from soma_agents.language.lora import LoraAdapter, adapter_id
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.precision import format_for
from soma_agents.persona.voice import spoken
from soma_agents.settings import Settings
from soma_agents.storage.datasets import Dataset, read_dataset
from soma_agents.storage.files import (
    make_directory,
    put_in_place,
    room_for,
    write_atomic,
    write_manifest,
)
from soma_agents.training.corpus import Corpus, pairs_of, samples_of
from soma_agents.training.device import best_device
from soma_agents.training.group import Alone, Workers
from soma_agents.training.loop import Outcome, Progress, fit
from soma_agents.training.rehearsal import rehearsal_samples
from soma_agents.training.request import LOCK, PRECISION, PROGRESS, RESULT, Job, Result, read_result

PROGRESS_EVERY_S = 1.0


def carry_out(job: Job, train: Callable[[Job], Outcome]) -> None:
    """Train and store the adapter; what goes wrong for a reason is a result, too."""
    started = time.perf_counter()
    try:
        outcome = train(job)
        if outcome.stopped == "stop file":
            return
        finished = store(job, outcome, seconds=time.perf_counter() - started)
        result = Result(finished=finished)
    except SomaError as error:
        result = Result(failed=TrainingFailed(round=job.request.round, because=str(error)))
    write_atomic(job.directory / RESULT, result.model_dump_json().encode())
    shutil.rmtree(job.directory / "checkpoints", ignore_errors=True)


def train_here(
    job: Job, workers: Workers | None = None, device: torch.device | None = None
) -> Outcome:
    """Load everything and run the loop in this process, on a GPU unless another device is named."""
    device = device or best_device()
    model = load_base(job, precision_of(job, device, workers or Alone()))
    model.transformer.to(device)
    corpus = corpus_of(model, read_dataset(Path(job.request.path)), job.settings)
    return fit(
        model,
        corpus,
        job.settings.training,
        directory=job.directory,
        on_progress=progress_writer(job),
        workers=workers,
    )


def precision_of(job: Job, device: torch.device, workers: Workers) -> torch.dtype:
    """The number format of a run: that in which it began, else the fastest on `device`.

    The first worker decides: processors may differ, and formats must not.
    """
    file = job.directory / PRECISION
    if workers.rank == 0 and not file.exists():
        write_atomic(file, format_for(job.settings.engine.dtype, device.type).encode())
    short = torch.zeros(1)
    if workers.rank == 0:
        short += file.read_text() == "bfloat16"
    workers.share([short], [0])
    return torch.bfloat16 if short else torch.float32


def load_base(job: Job, dtype: torch.dtype) -> LanguageModel:
    """The base model that the request names.

    Raises:
        InvalidError: the settings name another model.
    """
    engine = job.settings.engine
    model = load_model(engine.model, dtype=dtype)
    if model.id != job.request.parent:
        raise InvalidError(
            f"round {job.request.round!r} is for base model {job.request.parent!r}, but "
            f"engine.model = {engine.model!r} is {model.id!r}; start a new round"
        )
    return model


def corpus_of(model: LanguageModel, dataset: Dataset, settings: Settings) -> Corpus:
    """A dataset as token ids, with the rehearsal."""
    context = min(settings.training.context, model.config.context)
    tokenizer, system = model.tokenizer, model.card.system
    learnt = [
        example
        for example in spoken(dataset.targets("train"), system=system)
        # A fact is a handful of words that must be known by heart: few passes would not do.
        for _ in range(settings.training.fact_repeats if example.kind == "fact" else 1)
    ]
    preferred = spoken(dataset.preferences("train"), system=system)
    checked = spoken(dataset.targets("validation"), system=system)
    return Corpus(
        replies=samples_of(tokenizer, learnt, context=context),
        preferences=pairs_of(tokenizer, preferred, context=context),
        rehearsal=rehearsal_samples(tokenizer, context=context, system=system),
        validation=samples_of(tokenizer, checked, context=context),
    )


def progress_writer(job: Job) -> Callable[[Progress], None]:
    """Append to the run's progress, about once a second, and the last step in any case."""
    file = job.directory / PROGRESS
    written = -math.inf

    def write(progress: Progress) -> None:
        nonlocal written
        now = time.perf_counter()
        if now - written < PROGRESS_EVERY_S and progress.step < progress.steps:
            return
        written = now
        event = TrainingProgressed(
            round=job.request.round,
            step=progress.step,
            steps=progress.steps,
            train_loss=progress.train_loss,
            validation_loss=progress.validation_loss,
            tokens_per_second=progress.tokens_per_second,
        )
        with file.open("a") as output:
            output.write(event.model_dump_json() + "\n")

    return write


def store(job: Job, outcome: Outcome, *, seconds: float) -> TrainingFinished:
    """Write the adapter under its content's hash, with its lineage, and say what it is."""
    with room_for(job.settings.home / "models"):
        return _store(job, outcome, seconds=seconds)


def _store(job: Job, outcome: Outcome, *, seconds: float) -> TrainingFinished:
    models = job.settings.home / "models"
    partial = models / f".{job.request.round}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    make_directory(partial)
    outcome.adapter.save(partial, job.request.parent)
    model = adapter_id(partial, job.request.parent)
    finished = TrainingFinished(
        round=job.request.round,
        model=model,
        path=str(models / model),
        hyperparameters=_hyperparameters(job, outcome),
        code_version=code_version(),
        steps=outcome.step,
        tokens=outcome.tokens,
        seconds=seconds,
        train_loss=outcome.train_loss,
        validation_loss=_number(outcome.validation_loss, outcome.train_loss),
    )
    lineage = finished.model_dump(exclude={"path"}) | {
        "base": job.request.parent,
        "dataset": job.request.dataset,
    }
    write_manifest(partial, lineage)
    put_in_place(partial, models / model)
    LoraAdapter.load(models / model, outcome.adapter.shape)
    return finished


def _hyperparameters(job: Job, outcome: Outcome) -> dict[str, object]:
    skipped = {"min_new_messages", "weekly", "min_examples"}
    return job.settings.training.model_dump(exclude=skipped) | {
        "precision": outcome.precision,
        "best_step": outcome.best_step,
        "stopped": outcome.stopped,
        "base_validation_loss": _number(outcome.base_loss, -1.0),
    }


def _number(value: float, otherwise: float) -> float:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else otherwise


def code_version() -> str:
    """The commit of the checkout that runs, or the version of the installed package."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 — constant but for our own path
        if found.returncode == 0:
            return found.stdout.strip()
    return importlib.metadata.version("soma")


@contextmanager
def alone(directory: Path) -> Generator[None]:
    """One process a run at a time: an orphan of the last attempt may take a moment to end."""
    with (directory / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> None:
    """Carry out the request in the file that the first argument names."""
    job = Job.model_validate_json(Path(arguments[0]).read_bytes())
    settle(job.cores)
    with alone(job.directory):
        if read_result(job.directory) is None:
            carry_out(job, train_here)


if __name__ == "__main__":
    main(sys.argv[1:])
