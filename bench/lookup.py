"""Would drafting from the context pay? Prompt lookup, counted on real conversations.

`python -m bench.lookup`. The engine answers dialogues of `../shared/corpus`, greedily and as chats are
sampled. Then each reply is gone through once more: where its last n tokens stood before, the tokens
that followed there are the draft, and what a step costs for so many tokens is measured. The figure is
the best speed-up of sampled replies in one stream that any setting would have had; below the target
it is not worth a second way of decoding.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from backports import zstd

from arbiters.events import ChatMessage
from bench.corpus import CORPUS
from soma_agents.language.cache import BatchCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import GenerationRequest, Piece
from soma_agents.language.sampling import Sampling

DIALOGUES, TOKENS, CONTEXT = 16, 96, 160
SETTINGS = [(n, draft) for n in (2, 3, 4) for draft in (1, 3, 7)]
"""Tokens that must have stood before, and tokens drafted at most."""
STREAMS = (1, 2)
KINDS = {
    "greedy": Sampling(temperature=0, max_tokens=TOKENS),
    "sampled": Sampling(temperature=0.7, top_p=0.95, seed=1, max_tokens=TOKENS),
}
TARGET = 1.15


def conversations() -> Iterator[list[ChatMessage]]:
    """Dialogues of several turns up to the last question."""
    with zstd.open(CORPUS / "dialogue-train.jsonl.zst", "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = [ChatMessage(**message) for message in json.loads(line)["messages"]]
            if len(turns) >= 4 and turns[-1].role == "assistant":
                yield turns[:-1]


def prompts(model: LanguageModel) -> list[list[int]]:
    """The conversations in tokens."""
    found = zip(range(DIALOGUES), conversations(), strict=False)
    return [
        model.tokenizer.encode(model.tokenizer.render(turns, add_generation_prompt=True))
        for _, turns in found
    ]


async def reply(engine: Engine, prompt: list[int], sampling: Sampling) -> list[int]:
    """The tokens of one answer."""
    request = GenerationRequest(tuple(prompt), sampling)
    items = [item async for item in engine.generate(request)]
    return [token for item in items if isinstance(item, Piece) for token in item.token_ids]


def drafts(prompt: list[int], answer: list[int], n: int, most: int) -> Iterator[tuple[int, int]]:
    """Of every step: tokens drafted, and how many of them were right."""
    tokens, at, seen = prompt + answer, len(prompt) + 1, dict[tuple[int, ...], int]()
    known = n
    while at < len(tokens):
        for end in range(known, at):  # what ends before the newest token
            seen[tuple(tokens[end - n : end])] = end
        known = at
        start = seen.get(tuple(tokens[at - n : at]), at)
        draft = tokens[start : min(start + most, at)]
        right = next(
            (i for i, token in enumerate(draft) if tokens[at + i : at + i + 1] != [token]),
            len(draft),
        )
        yield len(draft), right
        at += 1 + right


@torch.inference_mode()
def costs(model: LanguageModel, most: int) -> list[float]:
    """Seconds of a step for 1, 2 … rows."""
    decoder, found = Decoder(model), list[float]()
    for rows in range(1, most + 1):
        cache = BatchCache(model.config, torch.bfloat16)
        cache._reserve(rows, CONTEXT + 100)  # noqa: SLF001 - rows whose content does not matter
        cache.lengths = [CONTEXT] * rows
        times = list[float]()
        for _ in range(12):
            started = time.perf_counter()
            decoder.step(torch.zeros(rows, dtype=torch.long), cache, None)
            times.append(time.perf_counter() - started)
        found.append(statistics.median(times))
    return found


def gain(steps: Sequence[tuple[int, int]], cost: list[float], streams: int) -> float:
    """Time without drafts over time with them, where all streams draft alike."""
    plain = sum(1 + right for _, right in steps) * cost[streams - 1]
    return plain / sum(cost[streams * (1 + drafted) - 1] for drafted, _ in steps)


async def measure() -> dict[str, object]:
    """All gains, by kind of reply, streams and setting."""
    model = load_model("smollm2")
    engine, asked = Engine(model, slots=8), prompts(model)
    engine.start()
    answers = dict[str, list[list[int]]]()
    for kind, sampling in KINDS.items():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(reply(engine, prompt, sampling)) for prompt in asked]
        answers[kind] = [task.result() for task in tasks]
    await engine.close()
    cost = costs(model, max(STREAMS) * (1 + max(draft for _, draft in SETTINGS)))
    gains = {
        f"{kind}, {streams} streams": {
            f"{n} then {most}": round(
                gain(
                    [s for p, a in zip(asked, found, strict=True) for s in drafts(p, a, n, most)],
                    cost,
                    streams,
                ),
                3,
            )
            for n, most in SETTINGS
        }
        for kind, found in answers.items()
        for streams in STREAMS
    }
    best = max(gains["sampled, 1 streams"].values())
    return {
        "ok": True,
        "figure": best,
        "target": TARGET,
        "unit": "x faster with drafts",
        "pays": best >= TARGET,
        "gains": gains,
        "step_ms": [round(1e3 * seconds, 2) for seconds in cost[:8]],
        "tokens": {kind: sum(map(len, found)) for kind, found in answers.items()},
    }


if __name__ == "__main__":
    if not CORPUS.is_dir():
        sys.exit(f"{CORPUS} is not there; the dialogues are in it")
    print(json.dumps(asyncio.run(measure())))
