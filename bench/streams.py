"""Sizes of compressed token streams, beside zstd on the same ids.

`python -m bench.streams`. BPE streams use a vocabulary learnt from other text than they were made of.
The figure is the smallest, over the streams of BPE and words, of zstd's best size over that of the
method `adaptive`; streams of characters and bytes are measured beside them.
zstd gets the ids in as few whole bytes as they need, little-endian.
"""

import json
import time
from statistics import median

import numpy as np
import numpy.typing as npt
from backports import zstd

from bench.corpus import documents, mixed
from soma_agents.language.symbols.bpe import Bpe
from soma_agents.language.symbols.compression.codec import METHODS, compress, decompress
from soma_agents.language.symbols.tokenise import tokenise

VOCABULARY = 16_384
LEVELS = (3, 19, 22)
LEARN_FROM = 6_000_000
TAKEN = 1_500_000
TOKENS = ("bpe", "word")
TARGET = 1.0

Ids = npt.NDArray[np.uint32]


def streams() -> dict[str, Ids]:
    """Name → ids."""
    sample, name = mixed()
    bpe = Bpe.train(documents("train-00.jsonl.zst", LEARN_FROM) or [sample], VOCABULARY)
    found = {f"bpe, {name}": bpe.encode(sample)}
    for file in ("val.jsonl.zst", "dialogue-train.jsonl.zst"):
        texts = documents(file, TAKEN)
        if texts:
            found[f"bpe, {file}"] = bpe.encode("\n\n".join(texts))
    return found | {f"{m}, {name}": tokenise(sample, m).ids for m in ("word", "character", "byte")}


def sizes(ids: Ids) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes of each method and of zstd; millions of tokens a second there and back, of each."""
    width = max(1, -(-int(ids.max()).bit_length() // 8))
    raw = ids.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    found = {f"zstd -{level}": len(zstd.compress(raw, level)) for level in LEVELS}
    speeds: dict[str, float] = {}
    for method in METHODS:
        started = time.perf_counter()
        packed = compress(ids, method)
        assert np.array_equal(decompress(packed), ids)
        speeds[method] = len(ids) / (time.perf_counter() - started) / 1e6
        found[method] = len(packed)
    return found, speeds


def measure() -> dict[str, object]:
    """Every stream by every method."""
    table: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    speeds = []
    for name, ids in streams().items():
        found, speed = sizes(ids)
        table[name] = {"tokens": len(ids)} | {
            method: round(8 * size / len(ids), 3) for method, size in found.items()
        }
        ratios[name] = min(found[f"zstd -{level}"] for level in LEVELS) / found["adaptive"]
        speeds.append(speed)
        print(json.dumps({name: table[name]}), flush=True)
    worst = min(ratio for name, ratio in ratios.items() if name.startswith(TOKENS))
    return {
        "ok": worst >= TARGET,
        "figure": round(worst, 3),
        "target": TARGET,
        "unit": "zstd's best size over adaptive's, on the worst stream of BPE or words",
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "bits_per_token": table,
        "million_tokens_per_s": {m: round(median(s[m] for s in speeds), 3) for m in METHODS},
    }


if __name__ == "__main__":
    result = measure()
    print(json.dumps(result))
    raise SystemExit(0 if result["ok"] else 1)
