"""The training loop: plain torch, one process or a share of several.

A frozen base in bfloat16 or float32, whichever is faster, and a fresh LoRA adapter with float32
masters. The gradient flows through the base but never into it. A run is a function of its corpus, settings and seed: it resumes from
its newest whole checkpoint and ends with the same weights as if it had never been interrupted.
"""

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from arbiters.errors import SomaError
from soma_agents.language.lora import LoraAdapter, LoraConfig
from soma_agents.language.model import LanguageModel
from soma_agents.language.prefix import hidden_behind_prefix
from soma_agents.settings import TrainingSettings
from soma_agents.training import losses
from soma_agents.training.adamw import AdamW
from soma_agents.training.adaptation import Adaptation
from soma_agents.training.checkpoints import Checkpoint, Checkpoints
from soma_agents.training.corpus import (
    REHEARSAL_STRIDE,
    Corpus,
    MicroBatch,
    Padded,
    Sample,
    Step,
    micro_batches,
    padded,
    plan,
)
from soma_agents.training.group import Alone, Workers
from soma_agents.training.request import STOP
from soma_agents.training.schedules import learning_rate

Stopped = Literal["finished", "early", "deadline", "stop file"]

VALIDATIONS = 4
"""How often a whole run looks at its validation split."""
VALIDATION_TOKENS = 2048
"""Tokens of the validation split that are looked at: validation costs time, too."""
LAYOUT = 2
"""Of a checkpoint's tensors; those of another one are not gone on from."""


class DivergedError(SomaError):
    """The loss is not a number any more."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps done of all steps; losses in nats a target token."""

    step: int
    steps: int
    train_loss: float
    validation_loss: float | None
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the adapter that was best on validation, and how it was found.

    `base_loss` is the validation loss of the base model, nan without a validation split;
    `precision` the number format of the base that was computed with.
    """

    adapter: LoraAdapter
    precision: str
    stopped: Stopped
    step: int
    best_step: int
    tokens: int
    seconds: float
    train_loss: float
    validation_loss: float
    base_loss: float


@dataclass(frozen=True, slots=True)
class _State:
    """What a checkpoint keeps beside the tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    train_loss: float = math.nan
    base_loss: float = math.nan
    validation_loss: float = math.nan
    best_step: int = 0
    worse: int = 0


def fit(
    model: LanguageModel,
    corpus: Corpus,
    settings: TrainingSettings,
    *,
    directory: Path,
    on_progress: Callable[[Progress], None],
    workers: Workers | None = None,
) -> Outcome:
    """Train a fresh adapter, or go on from the newest checkpoint in `directory`.

    It computes where the model lies; the adapter that comes of it lies in the CPU's memory.

    Raises:
        DivergedError: the loss or a gradient is NaN or infinite.
        InvalidError: there is nothing to learn.
    """
    run = _Run(model, corpus, settings, directory=directory, workers=workers or Alone())
    run.resume()
    return run.finish(run.train(on_progress))


class _Run:
    """One run, from its first step or from a checkpoint."""

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        settings: TrainingSettings,
        *,
        directory: Path,
        workers: Workers,
    ) -> None:
        self._model = model
        self._device = model.transformer.head.weight.device
        self._settings = settings
        self._directory = directory
        self._workers = workers
        self._plan = plan(corpus, settings)
        self._validation = _validation(corpus.validation, settings.seed)
        self._every = max(1, math.ceil(len(self._plan) / VALIDATIONS))
        model.transformer.requires_grad_(requires_grad=False)
        self._adapter = LoraAdapter.create(
            LoraConfig(rank=settings.rank, alpha=settings.alpha), model.config, seed=settings.seed
        ).to(self._device)
        self._adaptation = Adaptation(self._adapter, model.transformer.head.weight.dtype)
        self._parameters = dict(self._adapter.named_parameters())
        self._optimizer = AdamW(self._parameters)
        self._best = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._state = _State()
        self._checkpoints = Checkpoints(directory / "checkpoints", self._fingerprint(corpus))
        self._resumed_at = self._saved_at = time.perf_counter()
        self._seconds_before = 0.0

    def _fingerprint(self, corpus: Corpus) -> str:
        """What a checkpoint must have been made from to be of use here."""
        facts = [LAYOUT, self._model.id, self._settings.model_dump(), asdict(corpus)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    # --- setup -----------------------------------------------------------------------------

    def resume(self) -> None:
        """Take the newest whole checkpoint of this very run; else look at the base."""
        found = self._checkpoints.newest()
        step = torch.tensor(float(found.state["step"]) if found else 0.0)
        here = step.clone()
        self._workers.sum([step])
        if step != here * self._workers.count:
            raise SomaError(f"workers see different checkpoints in {self._directory}; share it")
        if found is None:
            loss = self._validate()
            self._state = replace(self._state, base_loss=loss, validation_loss=math.nan)
            return
        self._state = _State(**found.state)
        self._seconds_before = self._state.seconds
        self._load(found.tensors)

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"adapter/{name}"])
            self._best[name] = tensors[f"best/{name}"]
        self._optimizer.load(tensors)
        self._adaptation.refresh()

    # --- running ---------------------------------------------------------------------------

    def train(self, on_progress: Callable[[Progress], None]) -> Stopped:
        """Take the remaining steps and say why there are no more."""
        while self._state.step < len(self._plan):
            if self._state.worse >= self._settings.patience:
                return "early"
            if (why := self._interrupted()) is not None:
                self._save()
                return why
            self._advance(self._plan[self._state.step])
            on_progress(self._progress())
            if time.perf_counter() - self._saved_at >= self._settings.checkpoint_every_s:
                self._save()
        return "finished"

    def _interrupted(self) -> Literal["deadline", "stop file"] | None:
        stop = torch.zeros(2)
        if self._workers.rank == 0:
            stop[0] = float(self._elapsed() > self._settings.max_seconds)
            stop[1] = float((self._directory / STOP).exists())
        self._workers.sum([stop])
        if stop[1]:
            return "stop file"
        return "deadline" if stop[0] else None

    def _elapsed(self) -> float:
        return self._seconds_before + time.perf_counter() - self._resumed_at

    def _advance(self, step: Step) -> None:
        """One optimiser step over this worker's share of the micro-batches."""
        reply_loss = torch.zeros((), device=self._device)
        for batch in step.batches[self._workers.rank :: self._workers.count]:
            loss = self._loss(batch) / max(1, step.counts[batch.kind])
            if batch.kind == "rehearsal":
                loss = loss * self._settings.rehearsal_weight
            loss.backward()
            self._adaptation.collect()
            if batch.kind == "reply" or not step.counts["reply"]:
                reply_loss += loss.detach()
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        self._workers.sum([*gradients, reply_loss])
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip)
        done = self._state.step
        if not (math.isfinite(norm) and math.isfinite(reply_loss)):
            raise DivergedError(
                f"training diverged at step {done + 1} of {len(self._plan)}: loss {float(reply_loss)!r}, "
                f"gradient norm {float(norm)!r}; lower training.learning_rate "
                f"(now {self._settings.learning_rate!r})"
            )
        peak = self._settings.learning_rate
        self._optimizer.step(learning_rate(done, steps=len(self._plan), peak=peak))
        self._adaptation.refresh()
        self._note(step, float(reply_loss))

    def _note(self, step: Step, loss: float) -> None:
        self._state = replace(
            self._state,
            step=self._state.step + 1,
            tokens=self._state.tokens + step.tokens,
            train_loss=loss,
            seconds=self._elapsed(),
        )
        if self._state.step % self._every == 0 or self._state.step == len(self._plan):
            self._judge(self._validate())

    def _judge(self, loss: float) -> None:
        """Keep the adapter if it is the best so far on validation."""
        best = self._state.validation_loss
        if math.isnan(best) or not loss >= best:
            # Being the first is not enough: a gain is one over the base model.
            gained = math.isnan(self._state.base_loss) or loss < self._state.base_loss
            worse = 0 if gained else self._state.worse + 1
            self._state = replace(
                self._state, validation_loss=loss, best_step=self._state.step, worse=worse
            )
            self._best = {name: p.detach().clone() for name, p in self._parameters.items()}
        else:
            self._state = replace(self._state, worse=self._state.worse + 1)

    def _loss(self, batch: MicroBatch) -> Tensor:
        """Sum of the batch's losses: over target tokens, or over pairs."""
        stride = REHEARSAL_STRIDE if batch.kind == "rehearsal" else 1
        inputs = padded(batch.samples, stride=stride).to(self._device)
        head = self._model.transformer.head.weight
        hidden = self._hidden(inputs, self._adaptation)
        if batch.kind == "reply":
            return losses.cross_entropy(hidden, head, inputs.targets).sum()
        with torch.no_grad():
            reference = self._hidden(inputs, None)
        if batch.kind == "rehearsal":
            return losses.divergence(hidden, head, reference).sum()
        gain = losses.cross_entropy(reference, head, inputs.targets) - losses.cross_entropy(
            hidden, head, inputs.targets
        )
        whole = gain.new_zeros(len(batch.samples)).index_add(0, inputs.rows, gain)
        return losses.preference(whole[0::2], whole[1::2], beta=self._settings.dpo_beta).sum()

    def _hidden(self, inputs: Padded, lora: Adaptation | None) -> Tensor:
        """Hidden states at the target positions, (N, D)."""
        transformer = self._model.transformer
        hidden = hidden_behind_prefix(transformer, inputs.tokens, inputs.prefix, lora=lora)
        return hidden[inputs.rows, inputs.columns]

    @torch.no_grad()
    def _validate(self) -> float:
        """Nats a target token on the validation split, nan when there is none."""
        if not self._validation:
            return math.nan
        total = torch.zeros(2, device=self._device)
        lora = self._adaptation if self._state.step else None
        for batch in self._validation[self._workers.rank :: self._workers.count]:
            inputs = padded(batch.samples).to(self._device)
            hidden = self._hidden(inputs, lora)
            head = self._model.transformer.head.weight
            total[0] += losses.cross_entropy(hidden, head, inputs.targets).sum()
            total[1] += len(inputs.targets)
        self._workers.sum([total])
        return float(total[0] / total[1])

    def _progress(self) -> Progress:
        state = self._state
        best = None if math.isnan(state.validation_loss) else state.validation_loss
        return Progress(
            step=state.step,
            steps=len(self._plan),
            train_loss=state.train_loss,
            validation_loss=best,
            tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        )

    # --- teardown --------------------------------------------------------------------------

    def _save(self) -> None:
        self._saved_at = time.perf_counter()
        self._state = replace(self._state, seconds=self._elapsed())
        if self._workers.rank or not self._state.step:
            return
        tensors = self._optimizer.state()
        for name, parameter in self._parameters.items():
            tensors[f"adapter/{name}"] = parameter.detach()
            tensors[f"best/{name}"] = self._best[name]
        self._checkpoints.save(Checkpoint(asdict(self._state), tensors))

    def finish(self, stopped: Stopped) -> Outcome:
        """The best adapter there is; the newest when validation has said nothing yet."""
        state = self._state
        if state.best_step:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(self._best[name])
        return Outcome(
            adapter=self._adapter.cpu(),
            precision=str(self._model.transformer.head.weight.dtype).removeprefix("torch."),
            stopped=stopped,
            step=state.step,
            best_step=state.best_step or state.step,
            tokens=state.tokens,
            seconds=self._elapsed(),
            train_loss=state.train_loss,
            validation_loss=state.validation_loss,
            base_loss=state.base_loss,
        )


def _validation(samples: Sequence[Sample], seed: int) -> list[MicroBatch]:
    """A fixed random part of the validation split, in micro-batches."""
    order = list(samples)
    random.Random(f"{seed}/validation").shuffle(order)  # noqa: S311
    taken: list[tuple[Sample, ...]] = []
    tokens = 0
    for sample in order:
        if taken and tokens + len(sample.tokens) > VALIDATION_TOKENS:
            break
        taken.append((sample,))
        tokens += len(sample.tokens)
    return micro_batches("reply", taken)
