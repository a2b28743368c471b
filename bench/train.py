"""Training speed of preset v1, and of a plain GPT of the same sizes, in tokens a second.

Ours runs in the number format that is fastest here, the peer with bf16 autocast and without: the
figure is against the faster. A format that is beyond help slow is tried with a few tokens only.

`python -m bench.train [--batch-tokens 16384] [--rounds 2]`, alone on the machine. Whole optimiser
steps by turns, so that a busy moment hits both; the best of the rounds. The products of matrices
that either cannot do without are measured too: they bound what a CPU can give.
"""

import os

# Waiting OpenMP workers must sleep soon, or they take the core from whoever works.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from bench.plain_gpt import PlainGpt, step
from soma_agents.language.precision import Format
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.optimiser import Optimisers
from soma_agents.pretraining.planning import plan
from soma_agents.pretraining.recipe import V1, parameters
from soma_agents.training.group import Alone

TARGET = 2.0
ROWS = 4
"""Rows that go through either model together."""
TRIED = 256
"""Tokens with which the peer's formats are tried."""
HOPELESS = 0.5
"""Share of the faster format's rate below which the other is not run with whole batches."""
FORMATS: dict[Format, str] = {
    "bfloat16": "plain GPT, eager, bf16 autocast",
    "float32": "plain GPT, eager, fp32",
}


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest call."""
    times: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def matrix_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of the product that v1's MLP makes of 4,096 tokens."""
    x, w = torch.randn(4096, 512).to(dtype), torch.randn(2048, 512).to(dtype)
    F.linear(x, w)
    return 2 * 4096 * 512 * 2048 / best(lambda: F.linear(x, w), 8) / 1e9


def plain() -> PlainGpt:
    """The peer, with v1's sizes."""
    model = V1.model
    return PlainGpt(
        vocab=model.vocab_size,
        layers=model.layers,
        heads=model.heads,
        width=model.d_model,
        inner=model.d_ff,
        context=model.context,
    )


class Peer:
    """The plain GPT with its optimiser."""

    def __init__(self) -> None:
        self._model = plain()
        self._adam = self._model.optimizer(1e-3)

    @property
    def parameters(self) -> int:
        """Numbers that it learns."""
        return sum(weight.numel() for weight in self._model.parameters())

    def rate(self, batches: list[torch.Tensor], form: Format) -> float:
        """Tokens a second of one optimiser step."""
        tokens = sum(batch.numel() - len(batch) for batch in batches)
        return tokens / best(lambda: step(self._model, self._adam, batches, form), 1)

    def tried(self, batch: torch.Tensor) -> dict[Format, float]:
        """The rate of each format with few tokens, the first ones left out."""
        few = [batch[:1, : TRIED + 1]]
        self.rate(few, "float32")
        return {form: self.rate(few, form) for form in FORMATS}


def measure(batch_tokens: int, rounds: int) -> dict[str, object]:
    """Both, by turns."""
    torch.manual_seed(1)
    recipe = V1.but(batch_tokens=batch_tokens, tokens=1_000_000).settled()
    batches = [
        torch.randint(recipe.model.vocab_size, (ROWS, recipe.row + 1))
        for _ in range(max(1, batch_tokens // (ROWS * recipe.row)))
    ]
    tokens = len(batches) * ROWS * recipe.row
    peer = Peer()
    learner = Learner(recipe)
    optimisers = Optimisers(learner, recipe, Alone())

    def ours() -> None:
        learner.refresh()
        for batch in batches:
            (learner.loss(batch)[0] / tokens).backward()
            learner.collect()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip)
        optimisers.step(1)

    peers = peer.tried(batches[0])
    running: list[Format] = [f for f in FORMATS if peers[f] > HOPELESS * max(peers.values())]
    peers |= dict.fromkeys(running, 0.0)
    learner.refresh()
    learner.loss(batches[0])[0].backward()
    fastest = 0.0
    for _ in range(rounds):
        for form in running:
            peers[form] = max(peers[form], peer.rate(batches, form))
        fastest = max(fastest, tokens / best(ours, 1))
        print({"ours": round(fastest)} | {f: round(r, 1) for f, r in peers.items()}, flush=True)
    ratio = fastest / max(peers.values())
    return {
        "ok": ratio >= TARGET,
        "figure": round(ratio, 3),
        "target": TARGET,
        "unit": "times the tokens/s of a plain GPT in its faster format",
        "tokens_per_s": round(fastest),
        "precision": recipe.format,
        "peers": {FORMATS[form]: round(rate, 1) for form, rate in peers.items()},
        "parameters": parameters(recipe.model),
        "peer_parameters": peer.parameters,
        "batch_tokens": tokens,
        "planned_tokens_per_s": round(plan(recipe).tokens_per_second),
        "gflops_bf16": round(matrix_rate(torch.bfloat16)),
        "gflops_fp32": round(matrix_rate(torch.float32)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    result = measure(options.batch_tokens, options.rounds)
    print(json.dumps(result))
    raise SystemExit(not result["ok"])
