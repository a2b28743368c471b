"""What each part that is SOMA's own, and each borrowed one, is worth: with and without.

`python -m bench.ablate [--tokens 200000] [--seeds 3] [--only NAME …]`. Same text, same
tokens, same order; a part's figure is the mean, over the seeds, of the bits per byte that it saves.
Prints one JSON line last, and before it the table as docs/log.md has it.
"""

import os

# Waiting OpenMP workers must sleep soon, or they take the core from whoever works.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.learn import Material, material, small
from soma_agents.pretraining.loop import Run
from soma_agents.pretraining.recipe import Recipe
from soma_agents.training.group import Alone


def variants(base: Recipe) -> dict[str, Recipe]:
    """A name for each change against the base."""
    model = base.model

    def sized(**changes: Any) -> Recipe:
        return replace(base, model=replace(model, **changes))

    return {
        "structure-aware embeddings": replace(base, features=True),
        "hierarchy-aware rotations": replace(base, hierarchy=True),
        "structure objective": replace(base, objectives=("structure",)),
        "hierarchy objective": replace(base, objectives=("hierarchy",)),
        "coherence objective": replace(base, objectives=("coherence",)),
        "all three objectives": replace(base, objectives=("structure", "hierarchy", "coherence")),
        "no norm of queries and keys": sized(head_norm=False),
        "a gate with silu instead of relu²": sized(gated=True, activation="silu"),
        "as many groups of keys as heads": sized(kv_heads=model.heads),
        "cosine instead of stable and decay": replace(base, schedule="cosine", floor=0.1),
        "no windows": sized(window=0, global_every=0),
        "momentum 0.9 instead of 0.95": replace(base, momentum=0.9),
    }


def learnt(recipe: Recipe, data: Material) -> tuple[float, float]:
    """Bits per byte of a whole run, and the seconds that it took."""
    recipe = replace(recipe, evaluations=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, data.packed, data.traits, directory=Path(folder), workers=Alone())
        started = time.perf_counter()
        run.train(lambda _: None)
        seconds = time.perf_counter() - started
        return run.bits_per_byte(data.judged), seconds


def measure(
    base: Recipe, data: Material, seeds: int, only: list[str]
) -> dict[str, dict[str, float]]:
    """Bits per byte of each variant, and what it saves against the base at the same seed."""
    chosen = {n: r for n, r in variants(base).items() if not only or n in only}
    bits: dict[str, list[float]] = {}
    for seed in range(1, seeds + 1):
        for name, recipe in {"base": base, **chosen}.items():
            found, seconds = learnt(replace(recipe, seed=seed), data)
            bits.setdefault(name, []).append(found)
            print(f"seed {seed}: {name}: {found:.4f} in {seconds:.0f} s", flush=True)
    table: dict[str, dict[str, float]] = {}
    for name, values in bits.items():
        saved = [b - v for b, v in zip(bits["base"], values, strict=True)]
        table[name] = {
            "bits_per_byte": round(statistics.mean(values), 4),
            "saves": round(statistics.mean(saved), 4),
            "worst": round(min(saved), 4),
            "best": round(max(saved), 4),
        }
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--judged", type=int, default=65_536, help="held-out tokens")
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    recipe = small(options.tokens)
    home = Path(tempfile.gettempdir()) / f"soma-bench-ablate-{options.tokens}"
    home.mkdir(exist_ok=True)
    found = measure(recipe, material(recipe, home, options.judged), options.seeds, options.only)
    print("| variant | bits a byte | saves | from | to |\n|---|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in row.values()) + " |")
    print(
        json.dumps(
            {
                "ok": True,
                "figure": found["base"]["bits_per_byte"],
                "unit": "bits per byte of the base",
                "target": None,
                "tokens": recipe.tokens,
                "seeds": options.seeds,
                "variants": found,
            }
        )
    )
