"""The bus against its model: `python -m bench.states [--runs N] [--steps M] [--seed S]`."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence

from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from bench.states.machine import Bus, patiently

RUNS, STEPS = 1000, 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the shortest history that went wrong, if one did, and one JSON line; 0 iff none did."""
    parser = argparse.ArgumentParser(prog="bench.states", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    began, differences = time.perf_counter(), 0
    machine = seed(options.seed)(Bus)
    try:
        run_state_machine_as_test(machine, settings=patiently(options.runs, options.steps))
    except Exception:  # noqa: BLE001 - whatever it is, it is what was looked for
        traceback.print_exc()
        differences = 1
    result = {
        "ok": not differences,
        "figure": differences,
        "target": 0,
        "unit": "differences",
        "runs": options.runs,
        "steps": options.steps,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
