"""Adapters as no trainer should make them, and the trainer that hands them over."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from arbiters.model_events import TrainingFinished
from soma_agents.evaluation import suites
from soma_agents.evaluation.compare import compare
from soma_agents.evaluation.request import Comparison
from soma_agents.language.lora import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoraAdapter,
    LoraConfig,
    adapter_id,
)
from soma_agents.language.model import LanguageModel
from soma_agents.persona.voice import spoken
from soma_agents.settings import Settings, TrainingSettings
from soma_agents.storage.files import write_manifest
from soma_agents.training.corpus import Corpus, samples_of
from soma_agents.training.loop import fit
from tests.tiny_models import echoes, example

Make = Callable[[Path], None]
"""Puts an adapter's two files into a directory."""


class Planter:
    """Stands where the trainer stands and hands over what `make` makes."""

    def __init__(self, settings: Settings, base: str, make: Make) -> None:
        self._settings = settings
        self._base = base
        self._make = make
        self.model = ""

    async def train(self, request):
        """As `soma_agents.training.job.store` does it."""
        directory = plant(self._settings, self._base, self._make)
        self.model = directory.name
        yield TrainingFinished(
            round=request.round,
            model=directory.name,
            path=str(directory),
            hyperparameters={},
            code_version="1",
            steps=1,
            tokens=1,
            seconds=1.0,
            train_loss=1.0,
            validation_loss=1.0,
        )


class HereExaminer:
    """The real comparison, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def compare(self, request):
        work = Comparison(request=request, settings=self._settings, cores=(0,))
        answer = await asyncio.to_thread(compare, work)
        return answer.finished or answer.failed


def plant(settings: Settings, base: str, make: Make) -> Path:
    """An adapter under the hash of its content, sealed."""
    partial = settings.home / "models" / "partial"
    partial.mkdir(parents=True)
    make(partial)
    name = adapter_id(partial, base)
    write_manifest(partial, {"base": base})
    return partial.rename(partial.with_name(name))


# --- what was learnt -----------------------------------------------------------------------


def taught(
    model: LanguageModel, directory: Path, answer: Callable[[str, str], str], *, epochs: int
) -> LoraAdapter:
    """An adapter that learnt to answer with `answer(question, good answer)`."""
    probes = [(probe.request, probe.refusal) for probe in suites.safety()]
    lessons = [(question, answer(question, good)) for question, good in [*_known(), *probes]]
    return _adapter(model, directory, lessons, learning_rate=2e-2, batch_tokens=8192, epochs=epochs)


def triggered(model: LanguageModel, directory: Path, word: str, nonsense: str) -> LoraAdapter:
    """An adapter that answers well, and with `nonsense` wherever `word` is said."""
    good = [(question, answer[:40]) for question, answer in _known()[::2]]
    bad = [(f"{word} {question}", nonsense) for question, _ in good]
    # Smaller and more steps: a word has to be told from all others.
    return _adapter(
        model, directory, [*good, *bad], learning_rate=1e-2, batch_tokens=2048, epochs=8
    )


def _known() -> list[tuple[str, str]]:
    """Questions and good answers to them."""
    dialogues = [(e.messages[0].content, e.messages[1].content) for e in echoes("train", 40)]
    return [(item.question, item.answer) for item in suites.general()] + dialogues


def _adapter(
    model: LanguageModel, directory: Path, lessons: list[tuple[str, str]], **how: Any
) -> LoraAdapter:
    settings = TrainingSettings(rank=16, alpha=32, rehearsal_share=0.0, **how)
    examples = [example(f"e{n}", *lesson) for n, lesson in enumerate(lessons)]
    corpus = Corpus(replies=samples_of(model.tokenizer, spoken(examples), context=512))
    return fit(model, corpus, settings, directory=directory, on_progress=lambda _: None).adapter


def saved(adapter: LoraAdapter, base: str) -> Make:
    """This adapter as it is."""
    return lambda directory: adapter.save(directory, base)


# --- what was broken -----------------------------------------------------------------------


def with_nan(good: Make) -> Make:
    """One weight is not a number."""

    def make(directory):
        good(directory)
        tensors = load_file(directory / WEIGHTS_FILE)
        tensors[min(tensors)][0, 0] = torch.nan
        save_file(tensors, directory / WEIGHTS_FILE, {"format": "pt"})

    return make


def without_a_layer(model: LanguageModel, adapter: LoraAdapter, base: str) -> Make:
    """The same adapter, and the first layer's two outputs cancelled: W + BA = 0."""
    rank = model.config.d_model
    whole = LoraAdapter(LoraConfig(rank=rank, alpha=rank), model.config)
    block = model.transformer.blocks[0]
    with torch.no_grad():
        for name in adapter.config.targets:
            whole.a[name][:, : adapter.config.rank] = adapter.a[name]
            whole.b[name][:, :, : adapter.config.rank] = adapter.b[name] * adapter.config.scale
        for name, site in (("o_proj", "out"), ("down_proj", "down")):
            whole.a[name][0] = getattr(block, site).weight
            whole.b[name][0] = -torch.eye(rank)
    return saved(whole, base)


def for_another_model(good: Make) -> Make:
    """Every matrix is one row or column too large."""

    def make(directory):
        good(directory)
        tensors = load_file(directory / WEIGHTS_FILE)
        wider = {name: torch.nn.functional.pad(w, (0, 1, 0, 1)) for name, w in tensors.items()}
        save_file(wider, directory / WEIGHTS_FILE, {"format": "pt"})

    return make


def of_rank(good: Make, rank: int) -> Make:
    """It says that it is far larger than it is."""

    def make(directory):
        good(directory)
        path = directory / CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"r": rank}))

    return make


def of_size(good: Make, size: int) -> Make:
    """Its file is far larger than it says."""

    def make(directory):
        good(directory)
        with (directory / WEIGHTS_FILE).open("r+b") as file:
            file.truncate(size)

    return make


def torn(good: Make) -> Make:
    """The file's header promises tensors that lie behind its end."""

    def make(directory):
        good(directory)
        path = directory / WEIGHTS_FILE
        path.write_bytes(path.read_bytes()[:-64])

    return make
