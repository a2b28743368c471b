"""Decoding speed of SmolLM2-135M in every number format, against `transformers` and OpenVINO GenAI.

`python -m bench.decode`, alone on the machine. Ours run from the GGUF file as it is and from `.sou`
files of BF16, Q8 and Q4; `transformers` generates with the same weights in bf16, OpenVINO GenAI from
the same GGUF file. All take turns with a prompt and 96 greedy tokens, prompt included in the time. The
figure is our fastest format with one stream over `transformers`; it holds when that is also half as
fast again as OpenVINO GenAI, and eight streams of it together are four times as fast as one.

For that one person asks eight things one after another, then eight people do at once, each beginning
with another, so that all work till nearly the end. As served, one stream is helped by drafts, for which
eight have no arithmetic to spare; without drafts both do the same work for each token.
"""

import os

# As long as the longest pause between two products of a step; then waiting workers sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import openvino_genai

from bench.engine import STREAMS, TOKENS, finish, peer_of, peer_rate, prompt_of, rate, text_of
from soma_agents.language.checkpoint import open_checkpoint
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import GenerationRequest
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.blocks import Kind
from soma_agents.language.sou.convert import convert
from soma_agents.language.source import SMOLLM2, locate

KINDS: tuple[Kind, ...] = ("BF16", "Q8", "Q4")
ROUNDS = 3
LONG = 192
"""Tokens of a reply where streams are compared: so long that reading the prompts matters little."""
TRANSFORMERS, OPENVINO = "transformers.generate bf16", "OpenVINO GenAI, GGUF"
TARGETS = {TRANSFORMERS: 4.0, OPENVINO: 1.5}
TARGET_STREAMS = 4.0
_askers = itertools.count()


def say(what: str) -> None:
    """Tell whoever waits; the last line of standard output stays the result."""
    print(what, file=sys.stderr, flush=True)


def openvino_rate(model: LanguageModel) -> Callable[[], float]:
    """Tokens a second of OpenVINO GenAI, prompt included in the time."""
    pipeline = openvino_genai.LLMPipeline(str(locate(SMOLLM2)), "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos = TOKENS, True
    config.do_sample = config.apply_chat_template = False
    prompt = text_of(model, 0)

    def generate() -> float:
        started = time.perf_counter()
        made = pipeline.generate([prompt], config).perf_metrics.get_num_generated_tokens()
        return made / (time.perf_counter() - started)

    return generate


def started_engines(directory: Path) -> dict[str, Engine]:
    """An engine for each form of the model."""
    paths = {"GGUF Q4_1": locate(SMOLLM2)}
    for kind in KINDS:
        paths[f".sou {kind}"] = directory / f"smollm2.{kind}.sou"
        convert(open_checkpoint(locate(SMOLLM2)), directory / f"smollm2.{kind}.sou", kind)
    engines = {form: Engine(load_model(str(path)), slots=STREAMS) for form, path in paths.items()}
    for engine in engines.values():
        engine.start()
    return engines


async def one_stream(engines: dict[str, Engine]) -> dict[str, float]:
    """Tokens a second of everyone, by turns; medians."""
    model = next(iter(engines.values())).model
    peer, openvino = peer_of(model), openvino_rate(model)
    found = defaultdict[str, list[float]](list)
    for _ in range(ROUNDS + 1):
        found[TRANSFORMERS].append(peer_rate(peer, prompt_of(model, 0)))
        found[OPENVINO].append(openvino())
        for form, engine in engines.items():
            found[form].append((await rate(engine, model, 1))[0])
        say(", ".join(f"{name} {rates[-1]:.1f}" for name, rates in found.items()))
    return {name: statistics.median(rates[1:]) for name, rates in found.items()}


async def asks(engine: Engine, first: int) -> int:
    """One person's requests, one after another, from the `first` on; tokens of the replies."""
    sampling, made = Sampling(temperature=0, max_tokens=LONG), 0
    for number in range(STREAMS):
        prompt = prompt_of(engine.model, (first + number) % STREAMS)
        request = GenerationRequest(prompt, sampling, tenant=f"asker {next(_askers)}")
        made += (await finish(engine, request)).completion_tokens
    return made


async def streams_rate(engine: Engine, streams: int) -> float:
    """Tokens a second of so many people together."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asks(engine, first)) for first in range(streams)]
    return sum(task.result() for task in tasks) / (time.perf_counter() - started)


async def many_streams(engine: Engine) -> dict[str, float]:
    """Tokens a second of one person and of eight together, by turns; medians."""
    ones, eights = [], []
    for number in range(ROUNDS + 1):
        one, eight = await streams_rate(engine, 1), await streams_rate(engine, STREAMS)
        say(f"one stream {one:.1f}, {STREAMS} streams {eight:.1f}")
        if number:  # the first round warms up
            ones.append(one)
            eights.append(eight)
    one, eight = statistics.median(ones), statistics.median(eights)
    return {"one": round(one, 1), "eight": round(eight, 1), "ratio": round(eight / one, 2)}


async def measure() -> dict[str, object]:
    """Everything in one process, one at a time; the first round warms up."""
    with tempfile.TemporaryDirectory() as directory:
        engines = started_engines(Path(directory))
        rates = await one_stream(engines)
        fastest = max(engines, key=lambda form: rates[form])
        streams = await many_streams(engines[fastest])
        plain = Engine(engines[fastest].model, slots=STREAMS, drafts=False)
        plain.start()
        without_drafts = await many_streams(plain)
        for engine in (plain, *engines.values()):
            await engine.close()
    by_peer = {peer: rates[fastest] / rates[peer] for peer in TARGETS}
    return {
        "ok": streams["ratio"] >= TARGET_STREAMS
        and all(by_peer[peer] >= target for peer, target in TARGETS.items()),
        "figure": round(by_peer[TRANSFORMERS], 2),
        "target": TARGETS[TRANSFORMERS],
        "unit": "x tokens/s of transformers",
        "over_openvino": round(by_peer[OPENVINO], 2),
        "over_openvino_target": TARGETS[OPENVINO],
        "eight_streams_over_one": streams["ratio"],
        "eight_streams_target": TARGET_STREAMS,
        "streams": {"tokens": LONG, "as served": streams, "without drafts": without_drafts},
        "fastest": fastest,
        "tokens_per_s": {form: round(rates[form], 1) for form in engines},
        "peers": {peer: round(rates[peer], 1) for peer in TARGETS},
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    result = asyncio.run(measure())
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)
