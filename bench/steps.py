"""What a decoding step of SmolLM2-135M costs by its rows, and how true its arithmetic is.

`python -m bench.steps`, alone on the machine. Steps of 1, 2, 4 and 8 rows behind 160 tokens take turns:
without an adapter, with one of rank 16 for all, and with one each. The figure is the time of an eighth
of a step of eight rows, each with its own adapter, over that of a step of one row without: what a reply's
token costs among eight users who have all been learnt from, against alone on the base model.

Then the steps read text of `../shared/corpus`, as far as it is there, in pieces of 64 tokens; its bits
per byte are compared with those of torch's products with dense bf16 weights. The figure holds when both
differ by less than a thousandth. Last, prompts of 16, 40 and 128 tokens are read both ways.
"""

import os

# As long as the longest pause between two products of a step; then waiting workers sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.corpus import documents, mixed
from soma_agents.language.cache import BatchCache, PromptCache
from soma_agents.language.decoder import Decoder
from soma_agents.language.lora import LoraAdapter, LoraConfig
from soma_agents.language.mixed_lora import MixedLora, PackedLora
from soma_agents.language.model import LanguageModel, load_model

BEHIND, PIECE, PASSAGE = 160, 64, 1600
"""Tokens before a step; tokens of a step that reads; characters read in one context."""
ROWS = (1, 2, 4, 8)
READ = (16, 40, 128)
ROUNDS = 40
CHARACTERS = 40_000
TARGET, TARGET_DIFFERENCE = 0.5, 0.001


def cache_of(model: LanguageModel, rows: int, tokens: int) -> BatchCache:
    """Rows that hold so many tokens, all zero."""
    cache = BatchCache(model.config, torch.bfloat16)
    for _ in range(rows):
        prompt = PromptCache(model.config, tokens, torch.bfloat16)
        prompt.advance(tokens)
        cache.join(prompt)
    return cache


def adapter(model: LanguageModel, seed: int) -> PackedLora:
    """One that corrects everything a little."""
    made = LoraAdapter.create(LoraConfig(rank=16, alpha=32), model.config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for up in made.b.values():
            up.normal_(0, 0.01, generator=generator)
    return PackedLora(made, torch.bfloat16)


def medians_ms(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each, by turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: round(1e3 * statistics.median(found), 2) for name, found in times.items()}


@torch.inference_mode()
def step_ms(model: LanguageModel) -> dict[str, float]:
    """Milliseconds of a step of rows of as many sequences."""
    decoder, adapters = Decoder(model), [adapter(model, seed) for seed in range(max(ROWS))]
    works: dict[str, Callable[[], object]] = {}
    for rows in ROWS:
        runs, cache = [[100]] * rows, cache_of(model, rows, BEHIND)
        kinds = {
            "no adapter": None,
            "one adapter": MixedLora(adapters[:1] * rows),
            "one each": MixedLora(adapters[:rows]),
        }
        for kind, lora in kinds.items():
            works[f"{rows} rows, {kind}"] = lambda r=runs, c=cache, a=lora: decoder.step(r, c, a)
    return medians_ms(works)


@torch.inference_mode()
def read_ms(model: LanguageModel) -> dict[str, float]:
    """Milliseconds until a prompt is read, behind a system prompt of as many tokens as `BEHIND`."""
    decoder, works = Decoder(model), dict[str, Callable[[], object]]()

    def behind(tokens: int) -> PromptCache:
        cache = PromptCache(model.config, BEHIND + tokens, torch.bfloat16)
        cache.advance(BEHIND)
        return cache

    for count in READ:
        chunk = list(range(100, 100 + count))
        works[f"{count} tokens"] = lambda c=chunk: decoder.read(c, behind(len(c)), None)
        works[f"{count} tokens, dense bf16"] = lambda c=chunk: model.transformer.hidden(
            torch.tensor([c]), cache=behind(len(c))
        )
    return medians_ms(works)


def passages(model: LanguageModel) -> Iterator[tuple[list[int], int]]:
    """Tokens of pieces of text, and how many bytes they are."""
    texts = documents("val.jsonl.zst", CHARACTERS) or [mixed()[0][:CHARACTERS]]
    text = "\n".join(texts)[:CHARACTERS]
    for start in range(0, len(text), PASSAGE):
        part = text[start : start + PASSAGE]
        yield model.tokenizer.encode(part), len(part.encode())


def surprise(logits: Tensor, tokens: list[int]) -> float:
    """Bits of the tokens, each after those before it: `logits` (T, V) are of all but the last."""
    return F.cross_entropy(logits, torch.tensor(tokens), reduction="sum").item() / math.log(2)


@torch.inference_mode()
def stepped(model: LanguageModel, decoder: Decoder, tokens: list[int]) -> Tensor:
    """Logits (T, V) of tokens that steps read."""
    cache, found = cache_of(model, 1, 0), list[Tensor]()
    for start in range(0, len(tokens), PIECE):
        run = tokens[start : start + PIECE]
        found.append(decoder.step([run], cache, None))
        cache.keep(0, len(run))
    return torch.cat(found)


@torch.inference_mode()
def truth(model: LanguageModel) -> dict[str, float]:
    """Bits per byte of both, and how often both would say the same next token."""
    decoder, same, count, size = Decoder(model), 0, 0, 0
    bits = {"steps": 0.0, "dense bf16": 0.0}
    for tokens, size_of in passages(model):
        ours = stepped(model, decoder, tokens[:-1])
        dense = model.transformer(torch.tensor([tokens[:-1]]))[0].float()
        bits["steps"] += surprise(ours, tokens[1:])
        bits["dense bf16"] += surprise(dense, tokens[1:])
        same += int((ours.argmax(-1) == dense.argmax(-1)).sum())
        count, size = count + len(ours), size + size_of
    per_byte = {name: round(found / size, 5) for name, found in bits.items()}
    difference = bits["steps"] / bits["dense bf16"] - 1
    return per_byte | {
        "difference": round(difference, 6),
        "same_choice": round(same / count, 4),
        "tokens": count,
    }


def measure() -> dict[str, object]:
    """Time and truth."""
    model = load_model("smollm2")
    found = truth(model)
    times = step_ms(model)
    figure = times["8 rows, one each"] / 8 / times["1 rows, no adapter"]
    return {
        "ok": figure <= TARGET and abs(found["difference"]) < TARGET_DIFFERENCE,
        "figure": round(figure, 3),
        "target": TARGET,
        "unit": "x the time of a token alone without adapter, at most",
        "bits_per_byte": found,
        "bits_per_byte_target": TARGET_DIFFERENCE,
        "step_ms": times,
        "read_ms": read_ms(model),
    }


if __name__ == "__main__":
    result = measure()
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)
