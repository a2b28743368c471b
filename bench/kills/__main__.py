"""What `kill -9` destroys: `python -m bench.kills [--kills N] [--seed S]`.

Whole SOMAs without Ray are killed at random moments, their starts included, and started again on
the same files. Nothing acknowledged may be lost, nothing done twice, in any of N kills.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from bench.kills.storm import storm

KILLS = 500
SHOWN = 10
"""Findings printed of each kind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found and one JSON line; 0 iff every promise was kept."""
    parser = argparse.ArgumentParser(prog="bench.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    tally = storm(options.kills, options.seed)
    findings = tally.findings
    for kind in ("lost", "duplicated", "broken"):
        for finding in getattr(findings, kind)[:SHOWN]:
            print(f"{kind}: {finding}")
    figure = len(findings.lost) + len(findings.duplicated) + len(findings.broken)
    figure += tally.stale_accepted + tally.orphans
    result = {
        "ok": figure == 0,
        "figure": figure,
        "target": 0,
        "unit": "broken promises",
        "kills": tally.kills,
        "seed": options.seed,
        "lost": len(findings.lost),
        "duplicated": len(findings.duplicated),
        "otherwise_broken": len(findings.broken),
        "killed_while_starting": tally.killed_starting,
        "stopped_and_resumed": tally.stopped,
        "refused_beside_another": tally.refused,
        "accepted_from_stale": tally.stale_accepted,
        "orphans": tally.orphans,
        "events": findings.events,
        "acknowledged": findings.acknowledged,
        "rounds": dict(findings.verdicts),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
