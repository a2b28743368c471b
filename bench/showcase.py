"""The showcase preset on 400 sentences: seconds until the training loss is below 2.5.

`python -m bench.showcase`. The loss is what the seed of the project reports, the mean nats a token
in training, with a vocabulary of 576 tokens as there; here smoothed over some five steps. What a
reader should look at is the bits per byte of 100 sentences that were not trained on.
"""

import os

# Waiting OpenMP workers must sleep soon, or they take the core from whoever works.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import json
import re
import tempfile
import time
from pathlib import Path

from bench.corpus import mixed
from soma_agents.language.checkpoint import open_checkpoint
from soma_agents.language.sou.convert import convert
from soma_agents.pretraining.loop import Progress
from soma_agents.pretraining.recipe import SHOWCASE
from soma_agents.pretraining.run import Hooks, Sources, pretrain

SENTENCES, HELD_OUT = 400, 100
TARGET_LOSS, TARGET_SECONDS, TARGET_BYTES = 2.5, 60.0, 1_000_000
SEED = {"loss": 2.9922, "minutes": "40 to 60", "megabytes": 5.90, "parameters": 771_968}


def sentences(count: int) -> list[str]:
    """The first sentences of ordinary length in the small sample of the corpus."""
    found: list[str] = []
    for paragraph in mixed()[0].split("\n"):
        found += [
            sentence
            for sentence in re.split(r"(?<=[.!?]) ", paragraph)
            if 40 <= len(sentence) <= 160 and sentence[0].isupper() and sentence[-1] in ".!?"
        ]
    return found[:count]


def quantised(model: Path, target: Path) -> int:
    """Bytes of the same model with 8-bit weights."""
    source = open_checkpoint(model)
    convert(source, target, "Q8")
    source.close()
    return target.stat().st_size


def measure(folder: Path) -> dict[str, object]:
    """Train, and see when the loss fell below the target."""
    found = sentences(SENTENCES + HELD_OUT)
    for name, part in (("train", found[:SENTENCES]), ("held-out", found[SENTENCES:])):
        lines = (json.dumps({"text": sentence}) + "\n" for sentence in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    started = time.perf_counter()
    reached: list[float] = []
    losses: list[float] = []

    def look(progress: Progress) -> None:
        losses.append(progress.loss)
        recent = losses[-5:]
        if not reached and len(recent) == 5 and sum(recent) / 5 < TARGET_LOSS:
            reached.append(time.perf_counter() - started)

    sources = Sources(folder / "train.jsonl", folder / "held-out.jsonl")
    made = pretrain(sources, SHOWCASE, folder / "run", hooks=Hooks(on_progress=look))
    curve = [
        json.loads(line)["bits_per_byte"]
        for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return {
        "ok": bool(reached)
        and reached[0] <= TARGET_SECONDS
        and quantised(made.model, folder / "q8.sou") <= TARGET_BYTES,
        "figure": round(reached[0], 2) if reached else None,
        "target": TARGET_SECONDS,
        "unit": f"s until the training loss is below {TARGET_LOSS}",
        "seconds": round(time.perf_counter() - started, 2),
        "train_loss": round(sum(losses[-5:]) / 5, 4),
        "held_out_bits_per_byte": round(made.outcome.bits_per_byte, 4),
        "held_out_curve": [round(bits, 4) for bits in curve if bits is not None],
        "parameters": made.parameters,
        "q8_bytes": quantised(made.model, folder / "q8.sou"),
        "q8_bytes_target": TARGET_BYTES,
        "seed": SEED,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(Path(temporary))
    print(json.dumps(result))
    raise SystemExit(not result["ok"])
