"""How much a power cut destroys: `python -m bench.powercut [--cuts N] [--seed S]`.

Nothing acknowledged may be lost and nothing half done may be left, in any of N cuts; and each
weakness made on purpose must be found.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench.powercut.cuts import WORKLOADS, Recording, Run, Tally, cut, record
from bench.powercut.weaknesses import WEAKNESSES

CUTS = 20_000
CONTROL_CUTS = 300
SHOWN = 5
"""Failures printed for each workload."""
STRONG: list[Run] = [(name, None) for name in WORKLOADS]
WEAK: list[Run] = [(weakness.workload, name) for name, weakness in WEAKNESSES.items()]


async def strong(recordings: Mapping[Run, Recording], cuts: int, seed: int) -> dict[str, Tally]:
    """The cuts shared evenly among all workloads, as they are."""
    tallies: dict[str, Tally] = {}
    for place, run in enumerate(STRONG):
        share = cuts // len(STRONG) + (place < cuts % len(STRONG))
        began = time.perf_counter()
        tallies[run[0]] = await cut(run[0], recordings[run], cuts=share, seed=seed)
        _tell(run[0], tallies[run[0]], len(recordings[run]), time.perf_counter() - began)
    return tallies


async def weak(recordings: Mapping[Run, Recording], seed: int) -> dict[str, int]:
    """How many cuts of each weakness failed."""
    found: dict[str, int] = {}
    for name, weakness in WEAK:
        tally = await cut(name, recordings[name, weakness], cuts=CONTROL_CUTS, seed=seed)
        found[str(weakness)] = len(tally.failures)
        print(f"control {weakness}: {len(tally.failures)} of {CONTROL_CUTS} cuts of {name} failed")
    return found


def _tell(name: str, tally: Tally, places: int, seconds: float) -> None:
    print(
        f"{name}: {tally.cuts} cuts over {places} places, {len(tally.lost)} lost, "
        f"{len(tally.corrupt)} corrupt, {seconds:.1f} s"
    )
    for failure in tally.failures[:SHOWN]:
        print(f"  cut {failure.number} at place {failure.place}: {failure.because}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each workload and one JSON line; 0 iff every promise was kept."""
    parser = argparse.ArgumentParser(prog="bench.powercut", description=__doc__)
    parser.add_argument("--cuts", type=int, default=CUTS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    recordings = record([*STRONG, *WEAK])
    tallies = asyncio.run(strong(recordings, options.cuts, options.seed))
    controls = asyncio.run(weak(recordings, options.seed))
    lost = sum(len(tally.lost) for tally in tallies.values())
    corrupt = sum(len(tally.corrupt) for tally in tallies.values())
    result: dict[str, Any] = {
        "ok": lost == corrupt == 0 and all(controls.values()),
        "figure": lost + corrupt,
        "target": 0,
        "unit": "broken promises",
        "cuts": options.cuts,
        "seed": options.seed,
        "lost": lost,
        "corrupt": corrupt,
        "controls": {name: f"{count} of {CONTROL_CUTS}" for name, count in controls.items()},
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
