"""Model files: sizes, what quantising costs, and the time to the first token.

`python -m bench.sou`. SmolLM2-135M is written as F16, BF16, Q8, Q4 and Q2. The figure is the time in
which `transformers` reads the GGUF file and gives a token, over ours for the slowest of BF16, Q8
and Q4, each in a fresh process, imports not counted. It holds when the sizes and the perplexity on
held-out text (`../shared/corpus/val.jsonl.zst`, in fp32) hold, too.
"""

import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from soma_agents.language.checkpoint import open_checkpoint
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.blocks import Kind
from soma_agents.language.sou.convert import convert
from soma_agents.language.source import SMOLLM2, locate

VALIDATION = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "val.jsonl.zst"
KINDS: tuple[Kind, ...] = ("F16", "BF16", "Q8", "Q4", "Q2")
LOADED: tuple[Kind, ...] = ("BF16", "Q8", "Q4")
WINDOWS, WINDOW = 16, 256
DOCUMENT = 2000
"""Characters of a document at most, so that many are seen."""
ROUNDS = 2
TARGET = 5.0
MOST_SIZE = {"Q8": 0.53, "Q4": 0.30}
MOST_PERPLEXITY = {"Q8": 1.005, "Q4": 1.05}
PROMPT = "The sea was calm that morning, and"


def say(what: str) -> None:
    """Tell whoever waits; the last line of standard output stays the result."""
    print(what, file=sys.stderr, flush=True)


def held_out(model: LanguageModel) -> torch.Tensor:
    """Windows (WINDOWS, WINDOW) of text that no model here was fitted to."""
    if not VALIDATION.is_file():
        raise SystemExit(f"{VALIDATION} is not there; perplexity needs held-out text")
    with pa.CompressedInputStream(pa.OSFile(str(VALIDATION)), "zstd") as file:
        rows = [json.loads(line)["text"] for line in file.read().decode().splitlines()]
    random.Random(1).shuffle(rows)
    ids: list[int] = []
    for text in rows:
        ids += [*model.tokenizer.encode(text[:DOCUMENT]), *model.tokenizer.eos_ids]
        if len(ids) >= WINDOWS * WINDOW:
            break
    return torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW)


@torch.inference_mode()
def perplexity(model: LanguageModel, windows: torch.Tensor) -> float:
    """Exp of the mean loss of each token after those before it in its window."""
    losses = []
    for batch in windows.split(4):
        logits = model.transformer(batch)[:, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
        )
    return math.exp(statistics.mean(losses))


async def first_token(path: str) -> float:
    """Seconds from a path to the first token of the engine."""
    started = time.perf_counter()
    model = load_model(path)
    engine = Engine(model, slots=1)
    engine.start()
    prompt = tuple(model.tokenizer.encode(PROMPT))
    request = GenerationRequest(prompt, Sampling(temperature=0, max_tokens=1))
    found = [item async for item in engine.generate(request) if isinstance(item, Piece)]
    seconds = time.perf_counter() - started
    await engine.close()
    assert found
    return seconds


def peer_first_token() -> float:
    """The same for `transformers` and the GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate(SMOLLM2)
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.bfloat16
    )
    prompt = tokenizer(PROMPT, return_tensors="pt")
    model.generate(**prompt, max_new_tokens=1, do_sample=False)
    return time.perf_counter() - started


def apart(what: str) -> float:
    """Seconds as a fresh process measures them."""
    command = [sys.executable, "-m", "bench.sou", what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = float(done.stdout.splitlines()[-1])
    say(f"first token of {Path(what).name}: {seconds:.2f} s")
    return seconds


def files(directory: Path) -> Iterator[tuple[Kind, Path]]:
    """SmolLM2 in every number format."""
    for kind in KINDS:
        path = directory / f"smollm2.{kind}.sou"
        say(f"writing {kind}")
        convert(open_checkpoint(locate(SMOLLM2)), path, kind)
        yield kind, path


def measure() -> dict[str, object]:
    """Sizes, perplexities, then ours and the peer by turns."""
    with tempfile.TemporaryDirectory() as directory:
        paths = dict(files(Path(directory)))
        sizes = {kind: path.stat().st_size for kind, path in paths.items()}
        windows = held_out(load_model(SMOLLM2))
        surprise: dict[str, float] = {}
        for kind in ("F16", "Q8", "Q4", "Q2"):
            model = load_model(str(paths[kind]), dtype=torch.float32)
            surprise[kind] = perplexity(model, windows)
            say(f"perplexity of {kind}: {surprise[kind]:.3f}")
        seconds: dict[str, list[float]] = {kind: [] for kind in (*LOADED, "peer")}
        for _ in range(ROUNDS):
            for kind in LOADED:
                seconds[kind].append(apart(str(paths[kind])))
            seconds["peer"].append(apart("peer"))
    medians = {kind: statistics.median(found) for kind, found in seconds.items()}
    share = {kind: size / sizes["F16"] for kind, size in sizes.items()}
    cost = {kind: value / surprise["F16"] for kind, value in surprise.items()}
    figure = medians["peer"] / max(medians[kind] for kind in LOADED)
    return {
        "ok": figure >= TARGET
        and all(share[kind] <= most for kind, most in MOST_SIZE.items())
        and all(cost[kind] <= most for kind, most in MOST_PERPLEXITY.items()),
        "figure": round(figure, 1),
        "target": TARGET,
        "unit": "x faster to the first token",
        "first_token_s": {kind: round(medians[kind], 2) for kind in LOADED},
        "peers": {"transformers, GGUF": round(medians["peer"], 2)},
        "megabytes": {kind: round(size / 1e6, 1) for kind, size in sizes.items()},
        "of_f16": {kind: round(value, 4) for kind, value in share.items()},
        "of_f16_targets": MOST_SIZE,
        "perplexity": {kind: round(value, 3) for kind, value in surprise.items()},
        "perplexity_over_f16": {kind: round(value, 5) for kind, value in cost.items()},
        "perplexity_targets": MOST_PERPLEXITY,
        "tokens_scored": WINDOWS * (WINDOW - 1),
    }


def main() -> None:
    """Without arguments everything; with one the seconds of a file or of the peer."""
    warnings.simplefilter("ignore")
    match sys.argv[1:]:
        case ["peer"]:
            print(peer_first_token())
        case [path]:
            print(asyncio.run(first_token(path)))
        case _:
            found = measure()
            print(json.dumps(found))
            sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
