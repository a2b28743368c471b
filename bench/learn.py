"""Learning: held-out bits per byte of preset v1 and of a plain GPT on the same text.

`python -m bench.learn [--tokens 5000000] [--batch-tokens 16384] [--small]`. Three runs: the
peer; SOMA-LM after as many tokens; SOMA-LM with as many tokens as it takes in the peer's time. All
read the same rows in the same order. `--tune peer` or `ours` tries
learning rates instead.
"""

import os

# Waiting OpenMP workers must sleep soon, or they take the core from whoever works.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.corpus import documents, mixed
from bench.plain_gpt import PlainGpt, step
from soma_agents.pretraining.loop import Run
from soma_agents.pretraining.packed import Order, Packed, rows_of
from soma_agents.pretraining.recipe import V1, Recipe, parameters
from soma_agents.pretraining.run import Sources, pack_corpus, vocabulary_of
from soma_agents.pretraining.structure import Traits, traits_of
from soma_agents.pretraining.vocabulary import Vocabulary
from soma_agents.training.loop import Alone
from soma_agents.training.schedules import share

TARGET_TOKENS, TARGET_TIME = 0.03, 0.08
PEER_RATE = 2e-3
"""The peer's learning rate; see docs/log.md for how it and ours were chosen."""
BYTES_PER_TOKEN = 4.5
"""Text to prepare for each token of a run, with some to spare."""


@dataclass(frozen=True, slots=True)
class Material:
    """What both learn from."""

    packed: Packed
    traits: Traits
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
        texts = documents(source, size) or [mixed()[0]]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        file.write_text("".join(lines))
    sources = Sources(folder / "train.jsonl", folder / "held-out.jsonl")
    vocabulary: Vocabulary = vocabulary_of(sources, recipe, folder)
    return Material(pack_corpus(sources, vocabulary, folder), traits_of(vocabulary), judged)


def soma(recipe: Recipe, data: Material) -> tuple[float, float]:
    """Bits per byte behind a run, and its seconds without the judging."""
    torch.manual_seed(recipe.seed)
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(
            replace(recipe, evaluations=0),
            data.packed,
            data.traits,
            directory=Path(temporary),
            workers=Alone(),
        )
        started = time.perf_counter()
        for _ in range(recipe.steps):
            run.advance()
        seconds = time.perf_counter() - started
        return run.bits_per_byte(data.judged), seconds


def plain(recipe: Recipe, data: Material, rate: float) -> tuple[float, float]:
    """The same of the peer: AdamW, warm-up and a cosine to a tenth, as nanoGPT does it."""
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
    order = Order(rows_of(data.packed.train, recipe.row), seed=recipe.seed)
    started = time.perf_counter()
    for number in range(recipe.steps):
        part = share("cosine", number, steps=recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * part
        rows = order.take(number * recipe.rows, recipe.rows)
        batches = [
            tokens_of(data.packed.train, rows[i : i + recipe.micro_rows], recipe.row)
            for i in range(0, len(rows), recipe.micro_rows)
        ]
        step(model, optimizer, batches)
    seconds = time.perf_counter() - started
    return judge(model, data, recipe), seconds


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
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(tokens[:, :-1])
        targets = tokens[0, 1:]
        found = torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="none")
        nats += float(found[lengths[targets] > 0].sum())
        size += int(lengths[targets].sum())
    return nats / size / math.log(2)


def measure(recipe: Recipe, data: Material) -> dict[str, object]:
    """The three runs."""
    peer_bits, peer_seconds = plain(recipe, data, PEER_RATE)
    bits, seconds = soma(recipe, data)
    longer = replace(recipe, tokens=int(recipe.tokens * peer_seconds / seconds))
    timed_bits, timed_seconds = soma(longer, data)
    by_tokens, by_time = 1 - bits / peer_bits, 1 - timed_bits / peer_bits
    return {
        "ok": by_tokens >= TARGET_TOKENS and by_time >= TARGET_TIME,
        "figure": round(by_tokens, 4),
        "target": TARGET_TOKENS,
        "unit": "part of the peer's bits per byte saved after the same tokens",
        "same_time": round(by_time, 4),
        "same_time_target": TARGET_TIME,
        "bits_per_byte": round(bits, 4),
        "bits_per_byte_same_time": round(timed_bits, 4),
        "peers": {"plain GPT, AdamW": round(peer_bits, 4)},
        "tokens": recipe.steps * recipe.rows * recipe.row,
        "seconds": [round(s, 1) for s in (seconds, timed_seconds, peer_seconds)],
        "parameters": parameters(recipe.model),
    }


def tune(recipe: Recipe, data: Material, whose: str) -> None:
    """Bits per byte of either by learning rate, a line each."""
    if whose == "peer":
        for rate in (5e-4, 1e-3, 2e-3, 4e-3):
            bits = round(plain(recipe, data, rate)[0], 4)
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
        bits = round(soma(tried, data)[0], 4)
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
    parser.add_argument("--judged", type=int, default=65_536, help="held-out tokens")
    parser.add_argument("--tune", choices=("peer", "ours"))
    options = parser.parse_args()
    chosen = small(options.tokens)
    if not options.small:
        chosen = replace(V1, tokens=options.tokens, batch_tokens=options.batch_tokens)
    home = Path(tempfile.gettempdir()) / f"soma-bench-{chosen.model.vocab_size}-{options.tokens}"
    home.mkdir(exist_ok=True)
    ready = material(chosen, home, options.judged)
    if options.tune:
        tune(chosen, ready, options.tune)
    else:
        result = measure(chosen, ready)
        print(json.dumps(result))
        raise SystemExit(not result["ok"])
