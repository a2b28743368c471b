"""The pretraining loop: plain torch, one process or a share of several.

A run is a function of its tokens, recipe and seed: it resumes from its newest whole checkpoint and
ends with the same weights as if it had never been interrupted.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arbiters.errors import InvalidError
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.optimiser import Optimisers
from soma_agents.pretraining.packed import Order, Packed, learnt, rows_of, taken, unheard
from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.scaling import Scale, first_scale
from soma_agents.pretraining.shards import Shards
from soma_agents.pretraining.structure import Traits
from soma_agents.pretraining.vocabulary import Edges
from soma_agents.training.device import CPU
from soma_agents.training.group import Alone, Workers
from soma_agents.training.loop import DivergedError

EVALUATED = 32_768
"""Tokens of the held-out part that each look sees."""

CHECKPOINT_EVERY_S = 300.0
STOP = "stop"
"""A file in the run's folder that interrupts it, for workers whom no Ctrl-C reaches."""
RECENT = 0.8
"""Weight of what was before in the loss and speed that are shown."""

Ended = Literal["finished", "early", "deadline"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One optimiser step. Losses in nats a token; `bits_per_byte` only where it was measured."""

    step: int
    steps: int
    tokens: int
    seconds: float
    loss: float
    rate: float
    tokens_per_second: float
    bits_per_byte: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the learner as it was best on held-out text, and how it was found."""

    learner: Learner
    ended: Ended
    step: int
    tokens: int
    seconds: float
    loss: float
    bits_per_byte: float
    before: float = math.nan
    """Bits per byte of the weights that a run began with; nan if they were random."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a checkpoint keeps beside the tensors; the place in the data follows from the step."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    best: float = math.inf
    worse: int = 0
    before: float = math.nan
    scale: float = 1.0
    scaled: int = 0
    """What the loss is multiplied by, and the steps since that changed."""


def fit(
    recipe: Recipe,
    packed: Packed,
    traits: Traits,
    *,
    directory: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    max_seconds: float = math.inf,
    workers: Workers | None = None,
    sharded: bool = False,
    device: torch.device = CPU,
    start: Mapping[str, Tensor] | None = None,
    origin: str = "",
) -> Outcome:
    """Learn from the start, or go on from the newest checkpoint in `directory`.

    `start` are weights to begin with, named as `Learner.exported` names them; `origin` is the id
    of the model that they are of. With `sharded` each worker holds a part of the model only.

    Raises:
        DivergedError: the loss or a gradient is NaN or infinite.
        InvalidError: the corpus is smaller than a batch, or its tokens are another vocabulary's.
    """
    run = Run(
        recipe,
        packed,
        traits,
        directory=directory,
        workers=workers or Alone(),
        sharded=sharded,
        device=device,
        origin=origin,
    )
    if not run.resume() and start is not None:
        run.begin_with(start)
    return run.finish(run.train(on_progress, max_seconds))


class Run:
    """One run, from its first step or from a checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        packed: Packed,
        traits: Traits,
        *,
        directory: Path,
        workers: Workers,
        sharded: bool = False,
        device: torch.device = CPU,
        origin: str = "",
    ) -> None:
        rows = rows_of(packed.train, recipe.row)
        if rows < recipe.rows:
            raise InvalidError(
                f"the corpus has {len(packed.train)} tokens, a batch takes "
                f"{recipe.rows * recipe.row + 1}; bring more text, or use --batch-tokens "
                f"{max(1, rows) * recipe.row} and --row {min(recipe.row, len(packed.train) - 1)}"
            )
        if recipe.replies_only and not unheard(len(packed.train), packed.heard):
            raise InvalidError(
                "no assistant says anything in the corpus: there is no reply to learn"
            )
        if len(traits.lengths) != recipe.model.vocab_size:
            raise InvalidError(
                f"the vocabulary has {len(traits.lengths)} tokens, the model "
                f"{recipe.model.vocab_size}; they do not belong together"
            )
        self._recipe = recipe
        self._packed = packed
        self._device = device
        traits = traits.to(device)
        self._lengths = traits.lengths
        self._workers = workers
        self._directory = directory
        self._order = Order(rows, seed=recipe.seed)
        self._every = max(1, math.ceil(recipe.steps / max(1, recipe.evaluations)))
        with torch.device("meta") if sharded else nullcontext():
            self.learner = Learner(recipe, traits)
        if sharded:
            self.learner.shard(workers.count, device)
        else:
            self.learner.to(device)
        self._held = self.learner.held()
        self._optimisers = Optimisers(self.learner, recipe, workers)
        self._state = _State(scale=first_scale(recipe.format).factor)
        self._whole = True
        """False while an optimiser step has been taken in part."""
        self._best: dict[str, Tensor] = {}
        facts = json.dumps([recipe.facts(), packed.identity, origin], sort_keys=True)
        self._checkpoints = Shards(
            directory / "checkpoints",
            hashlib.sha256(facts.encode()).hexdigest(),
            workers,
            sharded=sharded,
        )
        self._saved_at = self._resumed_at = time.perf_counter()
        self._seconds_before = self._speed = 0.0

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights, and see how good they are; they stay unless others are better."""
        self.learner.take(weights)
        before = self._judge()  # it changes the state, too
        self._state = replace(self._state, before=before)

    def resume(self) -> bool:
        """Take the newest whole checkpoint of this very run; whether there is one."""
        if (found := self._checkpoints.newest()) is None:
            return False
        self._state = _State(**found.state)
        self._seconds_before = self._state.seconds
        tensors = found.tensors
        with torch.no_grad():
            for name, parameter in self._held.items():
                parameter.copy_(tensors[f"now/{name}"])
                if f"best/{name}" in tensors:
                    self._best[name] = tensors[f"best/{name}"]
        stem = "state/"
        self._optimisers.restore(
            {n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem)}
        )
        return True

    # --- running ---------------------------------------------------------------------------

    def train(
        self, on_progress: Callable[[Progress], None], max_seconds: float = math.inf
    ) -> Ended:
        """Take the remaining steps and say why there are no more."""
        try:
            while self._state.step < self._recipe.steps:
                if self._state.worse >= self._recipe.patience:
                    return "early"
                stopped, late, due = self._agreed(
                    (self._directory / STOP).exists(),
                    self._elapsed() > max_seconds,
                    time.perf_counter() - self._saved_at >= CHECKPOINT_EVERY_S,
                )
                if stopped:
                    raise KeyboardInterrupt  # noqa: TRY301 — and kept as after any other
                if late or due:
                    self._save()
                if late:
                    return "deadline"
                on_progress(self.advance())
        except (DivergedError, KeyboardInterrupt):
            if self._whole:  # nothing broken has been taken in: these weights are good
                self._save()
            raise
        return "finished"

    def _agreed(self, *mine: bool) -> list[bool]:
        """What the first worker finds: their clocks differ, what they do must not."""
        found = torch.tensor(mine, dtype=torch.float32)
        self._workers.share([found], [0])
        return [bool(each) for each in found]

    def _elapsed(self) -> float:
        return self._seconds_before + time.perf_counter() - self._resumed_at

    def advance(self) -> Progress:
        """One optimiser step over this worker's share of the rows."""
        started = time.perf_counter()
        recipe, step = self._recipe, self._state.step
        rows = self._order.take(step * recipe.rows, recipe.rows)
        loss = self._gradients(rows)
        norm = self._optimisers.clip(self._state.scale)
        scale = Scale(self._state.scale, self._state.scaled)
        if math.isfinite(loss) and not math.isfinite(norm) and (less := scale.overflown()):
            scale, rate = less, 0.0
        else:
            self._check(float(loss), norm, rows)
            self._whole = False
            scale, rate = scale.held(), self._optimisers.step(step)
        before = self._state.loss
        shown = float(loss) if math.isnan(before) else RECENT * before + (1 - RECENT) * float(loss)
        self._state = replace(
            self._state, step=step + 1, loss=shown, scale=scale.factor, scaled=scale.steps
        )
        self._whole = True
        speed = recipe.rows * recipe.row / (time.perf_counter() - started)
        self._speed = RECENT * self._speed + (1 - RECENT) * speed if self._speed else speed
        bits = None
        if (step + 1) % self._every == 0 or step + 1 == recipe.steps:
            bits = self._judge()
        return Progress(
            step=step + 1,
            steps=recipe.steps,
            tokens=(step + 1) * recipe.rows * recipe.row,
            seconds=self._elapsed(),
            loss=float(loss),
            rate=rate,
            tokens_per_second=self._speed,
            bits_per_byte=bits,
        )

    def _gradients(self, rows: list[int]) -> Tensor:
        """Mean nats a learnt token of the whole step; its gradients lie with what is held."""
        recipe, heard = self._recipe, self._packed.heard
        wanted = self._wanted(heard, rows)
        count = recipe.rows * recipe.row if wanted is None else max(1, int(wanted.sum()))
        total = torch.zeros((), device=self._device)
        self.learner.refresh()
        for some, part in self._micro_batches(rows):
            tokens = self._tokens(self._packed.train, some)
            loss, nats = self.learner.loss(tokens, self._wanted(heard, some))
            (loss * (part * self._state.scale / count)).backward()
            self.learner.collect()
            total += part * nats / count
        slopes = [p.grad for p in self._held.values() if p.grad is not None]
        # Those of a parted model have been added up on the way back.
        self._workers.sum([total] if self.learner.sharded else [*slopes, total])
        return total

    def _micro_batches(self, rows: list[int]) -> Iterator[tuple[list[int], float]]:
        """This worker's share of the rows, some at a time, and what they count: 1, or 0.

        Workers that hold the model together go through it equally often; who has no rows left
        takes one that counts for nothing.
        """
        recipe, count = self._recipe, self._workers.count
        mine = rows[self._workers.rank :: count]
        most = len(rows[::count]) if self.learner.sharded else len(mine)
        for start in range(0, most, recipe.micro_rows):
            some = mine[start : start + recipe.micro_rows]
            yield (some, 1.0) if some else (rows[:1], 0.0)

    def _wanted(self, heard: Edges, rows: list[int]) -> Tensor | None:
        """(B, T) whether the tokens behind those of these rows are to be learnt; None: all are."""
        if not self._recipe.replies_only:
            return None
        return torch.from_numpy(learnt(heard, rows, self._recipe.row)).to(self._device)

    def _check(self, loss: float, norm: float, rows: list[int]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise DivergedError(
            f"pretraining diverged in batch {self._state.step + 1} of {self._recipe.steps} "
            f"(rows {', '.join(map(str, rows[:8]))}{' …' if len(rows) > 8 else ''} "  # noqa: PLR2004
            f"of {self._recipe.row} tokens): loss {loss!r}, gradient norm {norm!r}; the weights "
            f"before it are in {self._directory / 'checkpoints'}; lower the learning rates "
            f"(now {self._recipe.matrix_rate!r} and {self._recipe.embedding_rate!r})"
        )

    def _tokens(self, part: npt.NDArray[np.unsignedinteger], rows: list[int]) -> Tensor:
        """(B, T + 1) of these rows."""
        found = taken(part, rows, self._recipe.row, self._recipe.model.vocab_size)
        return torch.from_numpy(found).to(self._device)

    # --- judging ---------------------------------------------------------------------------

    def _judge(self) -> float:
        """Bits per byte of held-out text; the best weights so far are kept."""
        bits = self.bits_per_byte()
        if math.isnan(bits):
            return bits
        if bits < self._state.best:
            self._state = replace(self._state, best=bits, worse=0)
            self._best = {n: p.detach().clone() for n, p in self._held.items()}
        else:
            self._state = replace(self._state, worse=self._state.worse + 1)
        return bits

    def bits_per_byte(self, most: int = EVALUATED) -> float:
        """Of up to `most` held-out tokens, of dialogues as far as they are learnt; nan without any."""
        recipe = self._recipe
        rows = min(rows_of(self._packed.held_out, recipe.row), max(1, most // recipe.row))
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        self.learner.refresh()
        for start in range(0, rows, recipe.micro_rows):
            some = list(range(start, min(rows, start + recipe.micro_rows)))
            tokens = self._tokens(self._packed.held_out, some)
            nats = self.learner.nats(tokens)
            seen = self._lengths[tokens[:, 1:]]
            if (wanted := self._wanted(self._packed.held_out_heard, some)) is not None:
                seen = seen * wanted
            total[0] += nats[seen > 0].sum()  # marks between documents stand for no bytes
            total[1] += seen.sum()
        # Processors differ in the last digits, decisions must not.
        self._workers.share([total], [0])
        return float(total[0] / total[1] / math.log(2)) if total[1] else math.nan

    # --- teardown --------------------------------------------------------------------------

    def _save(self) -> None:
        self._saved_at = time.perf_counter()
        self._state = replace(self._state, seconds=self._elapsed())
        if not self._state.step:
            return
        own = {f"state/{n}": t for n, t in self._optimisers.state().items()}
        weights = {f"now/{n}": p.detach() for n, p in self._held.items()}
        weights |= {f"best/{n}": p for n, p in self._best.items()}
        self._checkpoints.save(asdict(self._state), own, weights)

    def finish(self, ended: Ended) -> Outcome:
        """The weights that were best on held-out text, and how they were found."""
        if self._best:
            with torch.no_grad():
                for name, parameter in self._held.items():
                    parameter.copy_(self._best[name])
        return Outcome(
            learner=self.learner,
            ended=ended,
            step=self._state.step,
            tokens=self._state.step * self._recipe.rows * self._recipe.row,
            seconds=self._elapsed(),
            loss=self._state.loss,
            bits_per_byte=self._state.best if self._best else self.bits_per_byte(),
            before=self._state.before,
        )
