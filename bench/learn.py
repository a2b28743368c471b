"""Learning: held-out bits per byte of preset v1 and of a plain GPT on the same text.

`python -m bench.learn [--tokens 5000000] [--batch-tokens 16384] [--minutes M] [--small]`. Three
runs: the peer; SOMA-LM after as many tokens; SOMA-LM with as many tokens as it takes in the peer's
time, which is left out if SOMA-LM took less time and saved as much as is wanted of the third. Each
computes in the number format that is fastest here, all read the same rows in the same order. The
first two take turns of five minutes, so that a busy machine hinders both. After `--minutes` the
command says how far it came; called again it goes on. Models are left in a folder that it names.
`--tune peer` or `ours` tries learning rates instead.
"""

import os

# Waiting OpenMP workers must sleep soon, or they take the core from whoever works.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.corpus import documents, mixed
from bench.plain_gpt import PlainGpt, computing_in, step
from soma_agents.language.precision import fastest_format
from soma_agents.pretraining.artifact import save_model
from soma_agents.pretraining.loop import Progress, Run
from soma_agents.pretraining.packed import Order, Packed, rows_of
from soma_agents.pretraining.recipe import V1, Recipe, parameters
from soma_agents.pretraining.run import Sources, pack_corpus, vocabulary_of
from soma_agents.pretraining.structure import Traits, traits_of
from soma_agents.pretraining.vocabulary import Vocabulary
from soma_agents.storage.files import write_atomic
from soma_agents.training.group import Alone
from soma_agents.training.schedules import share

TARGET_TOKENS, TARGET_TIME = 0.03, 0.08
PEER_RATE = 2e-3
"""The peer's learning rate; see docs/log.md for how it and ours were chosen."""
TURN_SECONDS = 300.0
BYTES_PER_TOKEN = 4.5
"""Text to prepare for each token of a run, with some to spare."""


@dataclass(frozen=True, slots=True)
class Material:
    """What both learn from."""

    packed: Packed
    traits: Traits
    vocabulary: Vocabulary
    judged: int
    """Held-out tokens that both are judged by."""


def material(recipe: Recipe, folder: Path, judged: int) -> Material:
    """Enough of the corpus for the run, as tokens, kept for the next one."""
    wanted = int(recipe.tokens * 2 * BYTES_PER_TOKEN) + 4_000_000
    for name, source, size in (
        ("train", "train-00.jsonl.zst", wanted),
        ("held-out", "val.jsonl.zst", 2_000_000),
    ):
        file = folder / f"{name}.jsonl"
        if file.exists():
            continue
        texts = documents(source, size) or [mixed()[0]]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        write_atomic(file, "".join(lines).encode())
    sources = Sources(folder / "train.jsonl", folder / "held-out.jsonl")
    vocabulary = vocabulary_of(sources, recipe, folder)
    packed = pack_corpus(sources, vocabulary, folder)
    return Material(packed, traits_of(vocabulary), vocabulary, judged)


@dataclass(slots=True)
class Leg:
    """How far one of the runs is; `bits` are a byte's, once it is over."""

    seconds: float = 0.0
    tokens: int = 0
    bits: float = math.nan
    losses: list[float] = field(default_factory=list[float])
    """Nats a token of each step, of text that was not seen before."""

    def took(self, step: int, loss: float) -> None:
        """Note the loss of a step, from 1; those behind it were taken in vain."""
        self.losses[step - 1 :] = [round(loss, 4)]

    def curve(self, points: int = 10) -> list[float]:
        """Mean losses of as many stretches of the run."""
        parts = np.array_split(np.array(self.losses), min(points, len(self.losses) or 1))
        return [round(float(part.mean()), 3) for part in parts if part.size]

    @property
    def is_over(self) -> bool:
        """Whether it has been judged."""
        return not math.isnan(self.bits)


def soma(recipe: Recipe, data: Material, folder: Path, leg: Leg, until: float) -> None:
    """Go on with a run of SOMA-LM till its `seconds` are `until`; at its end leave `model.sou`."""
    torch.manual_seed(recipe.seed)
    run = Run(
        replace(recipe, evaluations=0), data.packed, data.traits, directory=folder, workers=Alone()
    )
    run.resume()

    def note(progress: Progress) -> None:
        leg.seconds, leg.tokens = progress.seconds, progress.tokens
        leg.took(progress.step, progress.loss)

    if run.train(note, until) == "finished":
        leg.bits = run.bits_per_byte(data.judged)
        lineage = {"name": f"soma-lm-{recipe.name}", "lineage": json.dumps(recipe.facts())}
        weights = dict(run.learner.exported())
        save_model(folder / "model.sou", recipe.model, weights, data.vocabulary, lineage)


def plain(
    recipe: Recipe,
    data: Material,
    folder: Path,
    leg: Leg,
    until: float,
    *,
    rate: float = PEER_RATE,
) -> None:
    """The same with the peer: AdamW, warm-up and a cosine to a tenth, as nanoGPT does it."""
    torch.manual_seed(recipe.seed)
    sizes = recipe.model
    model = PlainGpt(
        vocab=sizes.vocab_size,
        layers=sizes.layers,
        heads=sizes.heads,
        width=sizes.d_model,
        inner=sizes.d_ff,
        context=sizes.context,
    )
    optimizer = model.optimizer(rate)
    if (kept := folder / "peer.pt").exists():
        found = torch.load(kept)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
    order = Order(rows_of(data.packed.train, recipe.row), seed=recipe.seed)
    began = time.perf_counter() - leg.seconds
    for number in range(leg.tokens // (recipe.rows * recipe.row), recipe.steps):
        if leg.seconds > until:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, kept.with_suffix(".partial"))
            kept.with_suffix(".partial").rename(kept)
            return
        part = share("cosine", number, steps=recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * part
        rows = order.take(number * recipe.rows, recipe.rows)
        batches = [
            tokens_of(data.packed.train, rows[i : i + recipe.micro_rows], recipe.row)
            for i in range(0, len(rows), recipe.micro_rows)
        ]
        loss = step(model, optimizer, batches, fastest_format())
        leg.took(number + 1, loss)
        leg.seconds = time.perf_counter() - began
        leg.tokens += recipe.rows * recipe.row
    leg.bits = judge(model, data, recipe)


def tokens_of(part: npt.NDArray[np.unsignedinteger], rows: list[int], size: int) -> torch.Tensor:
    """(B, T + 1)."""
    found = np.stack([part[row * size : row * size + size + 1] for row in rows])
    return torch.from_numpy(found.astype(np.int64))


@torch.no_grad()
def judge(model: PlainGpt, data: Material, recipe: Recipe) -> float:
    """Bits per byte of the rows that `Run.bits_per_byte` looks at."""
    rows = min(rows_of(data.packed.held_out, recipe.row), data.judged // recipe.row)
    lengths = data.traits.lengths
    nats, size = 0.0, 0
    for row in range(rows):
        tokens = tokens_of(data.packed.held_out, [row], recipe.row)
        with computing_in(fastest_format()):
            logits = model.logits(tokens[:, :-1])
        targets = tokens[0, 1:]
        found = torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="none")
        nats += float(found[lengths[targets] > 0].sum())
        size += int(lengths[targets].sum())
    return nats / size / math.log(2)


class Race:
    """The three runs, and how far each is, kept beside them."""

    def __init__(self, recipe: Recipe, data: Material, folder: Path) -> None:
        self._recipe, self._data, self._folder = recipe, data, folder
        self._file = folder / "legs.json"
        kept = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.legs = {name: Leg(**kept.get(name, {})) for name in ("peer", "ours", "longer")}

    def run(self, seconds: float) -> None:
        """Let them take turns for so long, or until all are over."""
        ends = time.perf_counter() + seconds
        while self._last() is None and (left := ends - time.perf_counter()) > 0:
            waiting = [n for n in ("peer", "ours") if not self.legs[n].is_over] or ["longer"]
            name = min(waiting, key=lambda name: self.legs[name].seconds)
            leg, folder = self.legs[name], self._folder / name
            folder.mkdir(exist_ok=True)
            self._go_on(name)(folder, leg, leg.seconds + min(TURN_SECONDS, left))
            legs = {name: asdict(leg) for name, leg in self.legs.items()}
            write_atomic(self._file, json.dumps(legs).encode())
            print(name, leg.tokens, leg.curve(), leg.bits, file=sys.stderr, flush=True)

    def _go_on(self, name: str) -> Callable[[Path, Leg, float], None]:
        recipe, peer, ours = self._recipe, self.legs["peer"], self.legs["ours"]
        if name == "peer":
            return partial(plain, recipe, self._data)
        if name == "longer":
            recipe = replace(recipe, tokens=int(recipe.tokens * peer.seconds / ours.seconds))
        return partial(soma, recipe, self._data)

    def _last(self) -> Leg | None:
        """The run that stands for the peer's time: the third, or the second if that was enough."""
        peer, ours, longer = self.legs.values()
        if longer.is_over:
            return longer
        enough = 1 - ours.bits / peer.bits >= TARGET_TIME  # never of what is not over: nan
        return ours if enough and ours.seconds <= peer.seconds else None

    def result(self) -> dict[str, object]:
        """What came of it, as far as it came."""
        peer, ours, _ = self.legs.values()
        last = self._last() or Leg()
        by_tokens, by_time = 1 - ours.bits / peer.bits, 1 - last.bits / peer.bits
        return {
            "ok": by_tokens >= TARGET_TOKENS and by_time >= TARGET_TIME,
            "figure": rounded(by_tokens),
            "target": TARGET_TOKENS,
            "unit": "part of the peer's bits per byte saved after the same tokens",
            "same_time": rounded(by_time),
            "same_time_target": TARGET_TIME,
            "bits_per_byte": rounded(ours.bits),
            "bits_per_byte_same_time": rounded(last.bits),
            "peers": {"plain GPT, AdamW": rounded(peer.bits)},
            "tokens": {name: leg.tokens for name, leg in self.legs.items()},
            "seconds": {name: round(leg.seconds, 1) for name, leg in self.legs.items()},
            "curves": {name: leg.curve() for name, leg in self.legs.items()},
            "folder": str(self._folder),
            "parameters": parameters(self._recipe.model),
        }


def rounded(value: float) -> float | None:
    """None where a run is not over."""
    return None if math.isnan(value) else round(value, 4)


def alone(recipe: Recipe, data: Material, work: Callable[..., None], **how: float) -> float:
    """Bits per byte behind a whole run."""
    leg = Leg()
    with tempfile.TemporaryDirectory() as folder:
        work(recipe, data, Path(folder), leg, math.inf, **how)
    return round(leg.bits, 4)


def tune(recipe: Recipe, data: Material, whose: str) -> None:
    """Bits per byte of either by learning rate, a line each."""
    if whose == "peer":
        for rate in (5e-4, 1e-3, 2e-3, 4e-3):
            bits = alone(recipe, data, plain, rate=rate)
            print(json.dumps({"peer": rate, "bits_per_byte": bits}), flush=True)
        return
    for matrix, table in (
        (0.02, 0.005),
        (0.01, 0.005),
        (0.04, 0.005),
        (0.02, 0.0025),
        (0.02, 0.01),
    ):
        tried = replace(recipe, matrix_rate=matrix, embedding_rate=table)
        bits = alone(tried, data, soma)
        found = {"matrix": matrix, "embedding": table, "bits_per_byte": bits}
        print(json.dumps(found), flush=True)


def small(tokens: int) -> Recipe:
    """V1 in little: 4 layers of width 256, 4,096 words, rows of 512; minutes instead of hours."""
    sizes = replace(
        V1.model,
        layers=4,
        d_model=256,
        d_ff=1024,
        heads=4,
        kv_heads=1,
        vocab_size=4096,
        context=512,
        window=128,
    )
    return replace(V1, model=sizes, row=512, batch_tokens=2048, tokens=tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--small", action="store_true", help="v1 in little, to try")
    parser.add_argument("--minutes", type=float, default=math.inf, help="to work this time")
    parser.add_argument("--judged", type=int, default=65_536, help="held-out tokens")
    parser.add_argument("--tune", choices=("peer", "ours"))
    options = parser.parse_args()
    chosen = small(options.tokens)
    if not options.small:
        chosen = replace(V1, tokens=options.tokens, batch_tokens=options.batch_tokens)
    chosen = chosen.settled()
    identity = json.dumps([chosen.facts(), options.judged], sort_keys=True).encode()
    name = f"soma-bench-learn-{hashlib.sha256(identity).hexdigest()[:12]}"
    home = Path(tempfile.gettempdir()) / name
    home.mkdir(exist_ok=True)
    ready = material(chosen, home, options.judged)
    if options.tune:
        tune(chosen, ready, options.tune)
    else:
        race = Race(chosen, ready, home)
        race.run(60 * options.minutes)
        result = race.result()
        print(json.dumps(result))
        raise SystemExit(not result["ok"])
