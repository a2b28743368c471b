"""What drafts from the context gain: the engine with them and without, by turns, the same replies.

`python -m bench.lookup`, alone on the machine. Prompts whose answers quote them (summaries, sentences
of a text, code with comments) and free conversation (dialogues of `../shared/corpus`, stories without
it), greedily, as served, and warmer; in one stream and in four. A reply must have the same tokens both
ways, else this fails. Tokens a second count from the first token on: until then both do the same.
The figure is what quoting answers gain as served in one stream; it holds when free conversation is
nowhere slower. How often what was looked up was right, by how many tokens had stood before, is told
beside it: `drafts.PRIOR` is made of it, as `fixed_rows` (`native/place.py`) is of what a step costs for so many rows.
"""

import os

# As long as the longest pause between two products of a step; then waiting workers sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import asyncio
import inspect
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from backports import zstd

from arbiters.events import ChatMessage
from bench.corpus import CORPUS, documents, mixed
from soma_agents.language import prefix, reply, waiting
from soma_agents.language.cache import BatchCache, PromptCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.drafts import LONGEST, MOST_ROWS, PRIOR, SHORTEST, Drafter
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import Finished, GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.web.schemas import TEMPERATURE, TOP_P

TOKENS, CONTEXT = 128, 160
PROMPTS = 8
"""Of each task; a multiple of every number of streams."""
SETTINGS = {
    "greedy": Sampling(temperature=0, max_tokens=TOKENS),
    "served": Sampling(temperature=TEMPERATURE, top_p=TOP_P, seed=1, max_tokens=TOKENS),
    "warm": Sampling(temperature=0.7, top_p=0.95, seed=1, max_tokens=TOKENS),
}
RUNS = [("greedy", 1), ("served", 1), ("warm", 1), ("served", 4)]
TARGET, TARGET_FREE = 1.15, 0.97
FUNCTIONS = (waiting.FairQueue.remove, prefix.common_prefix, reply.Reply.piece)

Chat = list[ChatMessage]
Looked = Counter[tuple[int, bool]]
"""How many tokens had stood before, and whether the next one was right → how often."""
Told = tuple[list[list[int]], float, int]
"""Replies in tokens, seconds of decoding, and how many tokens these made."""


def asked(text: str) -> Chat:
    """One question."""
    return [ChatMessage(role="user", content=text)]


def quoting() -> Iterator[Chat]:
    """Questions whose answers repeat parts of them."""
    found = [text for text in documents("val.jsonl.zst", 40_000) if len(text) > 800]
    texts = found or [mixed()[0][start : start + 800] for start in range(0, 8000, 800)]
    for function in FUNCTIONS:
        source = f"```python\n{inspect.getsource(function)}```"
        yield asked(f"Add comments to this function and give it again.\n\n{source}")
    for text in texts[:3]:
        yield asked(f"Summarise this text in three sentences.\n\n{text[:800]}")
    for text in texts[3:5]:
        yield asked(f"{text[:800]}\n\nWhich sentence matters most? Quote it and say why.")


def free() -> Iterator[Chat]:
    """Dialogues of several turns up to the last question, after two wishes for a story."""
    for number in range(2 if CORPUS.is_dir() else PROMPTS):
        yield asked(f"Write a long story about {number} foxes.")
    if CORPUS.is_dir():
        with zstd.open(CORPUS / "dialogue-train.jsonl.zst", "rt", encoding="utf-8") as lines:
            for line in lines:
                turns = [ChatMessage(**message) for message in json.loads(line)["messages"]]
                if len(turns) >= 4 and turns[-1].role == "assistant":
                    yield turns[:-1]


def prompts(model: LanguageModel, chats: Iterator[Chat]) -> list[tuple[int, ...]]:
    """The first chats in tokens."""
    rendered = (model.tokenizer.render(chat, add_generation_prompt=True) for chat in chats)
    found = [
        tuple(model.tokenizer.encode(text))
        for _, text in zip(range(PROMPTS), rendered, strict=False)
    ]
    assert len(found) == PROMPTS
    return found


async def answer(engine: Engine, request: GenerationRequest) -> tuple[list[int], float, float]:
    """The tokens of one reply, and when its first and its last one came."""
    tokens, started = list[int](), time.perf_counter()
    async for item in engine.generate(request):
        match item:
            case Piece():
                tokens += item.token_ids
            case Finished():
                return tokens, started + item.first_token_s, started + item.total_s
    raise AssertionError("a reply ended without saying how")


async def together(engine: Engine, some: list[tuple[int, ...]], sampling: Sampling) -> Told:
    """Some prompts at once, timed from when all have their first token."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(answer(engine, GenerationRequest(prompt, sampling)))
            for prompt in some
        ]
    found = [task.result() for task in tasks]
    seconds = max(last for *_, last in found) - min(first for _, first, _ in found)
    return [tokens for tokens, *_ in found], seconds, sum(len(t) - 1 for t, *_ in found)


def looked_up(prompt: Sequence[int], said: Sequence[int]) -> Looked:
    """At every token of a reply, what was looked up for it: all of them, not only what was drafted."""
    drafter, found = Drafter(prompt), Looked()
    for token in said:
        if guess := drafter.guess(1):
            found[drafter.matched, guess[0] == token] += 1
        drafter.push(token)
    return found


def right_by_match(looked: Looked) -> list[dict[str, float]]:
    """Share that was right, as `drafts.PRIOR` has it."""
    return [
        {
            "stood_before": stood,
            "times": (times := looked[stood, True] + looked[stood, False]),
            "right": round(looked[stood, True] / max(1, times), 3),
            "prior": prior,
        }
        for stood, prior in zip(range(SHORTEST, LONGEST + 1), PRIOR, strict=True)
    ]


async def compared(
    engines: dict[bool, Engine],
    asked_for: list[tuple[int, ...]],
    sampling: Sampling,
    streams: int,
    looked: Looked,
) -> dict[str, float]:
    """Tokens a second with drafts and without, and what became of the drafts; adds to `looked`."""
    seconds, tokens = dict.fromkeys(engines, 0.0), dict.fromkeys(engines, 0)
    before = engines[True].stats()
    for at in range(0, len(asked_for), streams):
        said = dict[bool, list[list[int]]]()
        for drafts in (False, True) if at // streams % 2 else (True, False):
            found = await together(engines[drafts], asked_for[at : at + streams], sampling)
            said[drafts], spent, made = found
            seconds[drafts] += spent
            tokens[drafts] += made
        assert said[True] == said[False], "drafts changed a reply"
        for prompt, tokens_said in zip(asked_for[at:], said[True], strict=False):
            looked.update(looked_up(prompt, tokens_said))
    after = engines[True].stats()
    drafted = after.drafted_tokens - before.drafted_tokens
    rates = {drafts: tokens[drafts] / seconds[drafts] for drafts in engines}
    return {
        "gain": round(rates[True] / rates[False], 3),
        "with": round(rates[True], 1),
        "without": round(rates[False], 1),
        "drafted": drafted,
        "right": round((after.right_tokens - before.right_tokens) / max(1, drafted), 2),
    }


@torch.inference_mode()
def step_ms(model: LanguageModel) -> list[float]:
    """Milliseconds of a step of one sequence with 1, 2 … rows."""
    decoder, cache = Decoder(model), BatchCache(model.config, torch.bfloat16)
    cache.join(PromptCache(model.config, CONTEXT, torch.bfloat16))
    cache.keep(0, CONTEXT)
    times: list[list[float]] = [[] for _ in range(MOST_ROWS)]
    for _ in range(30):
        for rows, found in enumerate(times, 1):
            started = time.perf_counter()
            decoder.step([[100] * rows], cache, None)
            found.append(time.perf_counter() - started)
    return [round(1e3 * statistics.median(found), 2) for found in times]


async def measure() -> dict[str, object]:
    """All tasks in all settings."""
    model = load_model("smollm2")
    engines = {drafts: Engine(model, slots=4, drafts=drafts) for drafts in (True, False)}
    tasks = {"quoting": prompts(model, quoting()), "free": prompts(model, free())}
    found, looked = dict[str, dict[str, float]](), Looked()
    for engine in engines.values():
        engine.start()
        await together(engine, tasks["free"][:1], SETTINGS["greedy"])  # warms up
    for task, asked_for in tasks.items():
        for name, streams in RUNS:
            run = f"{task}, {name}, {streams} at once"
            found[run] = await compared(engines, asked_for, SETTINGS[name], streams, looked)
            print(run, found[run], file=sys.stderr, flush=True)
    for engine in engines.values():
        await engine.close()
    figure = found["quoting, served, 1 at once"]["gain"]
    least = min(of["gain"] for run, of in found.items() if run.startswith("free"))
    return {
        "ok": figure >= TARGET and least >= TARGET_FREE,
        "figure": figure,
        "target": TARGET,
        "unit": "x tokens/s without drafts, answers that quote, as served, one stream",
        "free_least": least,
        "free_target": TARGET_FREE,
        "runs": found,
        "right_by_match": right_by_match(looked),
        "step_ms": step_ms(model),
    }


if __name__ == "__main__":
    result = asyncio.run(measure())
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)
