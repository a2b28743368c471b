"""Decoding speed: one stream, eight streams, and `transformers.generate` with the same weights.

Run alone on the machine: `python -m bench.engine`. The figure is one stream over the peer's; it
holds when eight streams together are also at least three times one stream.
"""

import os

# Waiting OpenMP workers must sleep soon, or they take the core from whoever works.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import asyncio
import itertools
import json
import statistics
import time
import warnings
from typing import Any

import torch

from arbiters.events import ChatMessage
from soma_agents.language.engine import Engine
from soma_agents.language.hub.to_transformers import their_parts, their_sizes
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import Finished, GenerationRequest
from soma_agents.language.sampling import Sampling

TOKENS = 96
STREAMS = 8
ROUNDS = 5
TARGET_PEER = 2.0
TARGET_STREAMS = 3.0


def text_of(model: LanguageModel, number: int) -> str:
    """A chat prompt that long answers follow."""
    message = ChatMessage(role="user", content=f"Write a long story about {number} foxes.")
    return model.tokenizer.render([message], add_generation_prompt=True)


def prompt_of(model: LanguageModel, number: int) -> tuple[int, ...]:
    """The same in tokens."""
    return tuple(model.tokenizer.encode(text_of(model, number)))


def peer_of(model: LanguageModel) -> Any:
    """The same weights in `transformers`, bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = their_sizes(model.config)
    peer: Any = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=None))
    peer.to(torch.bfloat16)
    weights: dict[str, torch.Tensor] = {}
    for name, weight in model.transformer.state_dict().items():
        weights |= their_parts(model.config, name, weight)
    peer.load_state_dict(weights)
    return peer.eval()


def peer_rate(peer: Any, prompt: tuple[int, ...]) -> float:
    """Tokens a second of `generate`, prompt included in the time."""
    tokens = torch.tensor([prompt])
    started = time.perf_counter()
    made = peer.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=TOKENS,
        pad_token_id=0,
    )
    return (made.shape[1] - len(prompt)) / (time.perf_counter() - started)


_people = itertools.count()


async def rate(
    engine: Engine, model: LanguageModel, streams: int, tokens: int = TOKENS
) -> tuple[float, float]:
    """Tokens a second of `streams` requests together, and the slowest first token in seconds.

    Each is of somebody else, so that no prompt is known from before: the peers know none either.
    """
    sampling = Sampling(temperature=0, max_tokens=tokens)
    requests = [
        GenerationRequest(prompt_of(model, n), sampling, tenant=f"person {next(_people)}")
        for n in range(streams)
    ]
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(finish(engine, request)) for request in requests]
    seconds = time.perf_counter() - started
    ends = [task.result() for task in tasks]
    return sum(e.completion_tokens for e in ends) / seconds, max(e.first_token_s for e in ends)


async def finish(engine: Engine, request: GenerationRequest) -> Finished:
    """How a reply ended."""
    *_, last = [item async for item in engine.generate(request)]
    assert isinstance(last, Finished)
    assert last.reason in {"stop", "length"}
    return last


async def measure() -> dict[str, object]:
    """Peer and engine by turns, so that a busy moment hits both; medians of the rounds."""
    model = load_model("smollm2")
    peer = peer_of(model)
    engine = Engine(model, slots=STREAMS)
    engine.start()
    peers, singles, eights, firsts = [], [], [], []
    for number in range(ROUNDS + 1):
        found = peer_rate(peer, prompt_of(model, 0))
        single, first = await rate(engine, model, 1)
        eight, _ = await rate(engine, model, STREAMS)
        if number:  # the first round warms up
            peers.append(found)
            singles.append(single)
            eights.append(eight)
            firsts.append(first)
    await engine.close()
    by_peer = statistics.median(singles) / statistics.median(peers)
    by_streams = statistics.median(eights) / statistics.median(singles)
    return {
        "ok": by_peer >= TARGET_PEER and by_streams >= TARGET_STREAMS,
        "figure": round(by_peer, 2),
        "target": TARGET_PEER,
        "eight_streams_over_one": round(by_streams, 2),
        "eight_streams_target": TARGET_STREAMS,
        "tokens_per_s": round(statistics.median(singles), 1),
        "eight_streams_tokens_per_s": round(statistics.median(eights), 1),
        "first_token_s": round(statistics.median(firsts), 4),
        "peers": {"transformers.generate bf16": round(statistics.median(peers), 1)},
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(asyncio.run(measure())))
