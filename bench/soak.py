"""Whether anything grows that should not: `python -m bench.soak [--minutes 10]`.

Starts a SOMA with `soma up`, has it talk, be judged and be asked without a pause, and looks at
it every few seconds: memory (what processes share counted once), file descriptors, processes and
write-ahead logs. The middle third of the time is compared with the last one. The content of the
event log moves into its archive early, so that this goes on, too.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil

from bench.gateway import soma_up
from bench.overload import memory
from bench.round import free_port
from soma_agents.app.state import state_file

TALKERS = 4
LOOK_SECONDS = 10.0
GROWTH = {"memory_mb": 0.05, "descriptors": 0.02, "processes": 0.0, "wal_mb": 0.25}
"""How much the last third may be above the middle one."""
KEPT_EVENTS = 2_000


def look(home: str) -> dict[str, float]:
    """What there is now."""
    pid = json.loads(state_file(Path(home)).read_text())["pid"]
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    logs = (path.stat().st_size for path in Path(home).rglob("*.db-wal"))
    return {
        "memory_mb": memory(home) / 1e6,
        "descriptors": sum(process.num_fds() for process in family if process.is_running()),
        "processes": len(family),
        "wal_mb": max(1.0, sum(logs) / 1e6),  # below a megabyte is flat
    }


async def talk(http: httpx2.AsyncClient, who: int, until: float) -> int:
    """Conversations of a few turns with judgements and questions; how many turns there were."""
    turns = 0
    while time.monotonic() < until:
        conversation: dict[str, str] = {}
        for turn in range(4):
            body = {
                "message": f"I am {who}, this is number {turn} of {turns}. What is new?",
                "max_tokens": 2,
            } | conversation
            answer = (await http.post("/api/reason", json=body)).raise_for_status().json()
            conversation = {"conversation": answer["conversation"]}
            judged = {"target": answer["inference"], "name": "rating", "value": 1.0}
            (await http.post("/feedback", json=judged)).raise_for_status()
            turns += 1
        for path in ("/api/profile", "/api/personality/current", "/v1/models", "/metrics"):
            (await http.get(path)).raise_for_status()
    return turns


async def measure(url: str, home: str, minutes: float) -> dict[str, Any]:
    """Talk and look."""
    until = time.monotonic() + 60 * minutes
    seen: list[dict[str, float]] = []
    async with (
        httpx2.AsyncClient(base_url=url, timeout=120) as http,
        asyncio.TaskGroup() as group,
    ):
        talks = [group.create_task(talk(http, who, until)) for who in range(TALKERS)]
        while time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
            seen.append(await asyncio.to_thread(look, home))
            print(json.dumps(seen[-1]), file=sys.stderr, flush=True)
    third = len(seen) // 3
    middle, last = seen[third : 2 * third], seen[2 * third :]
    grown = {
        what: median(s[what] for s in last) / median(s[what] for s in middle) - 1 for what in GROWTH
    }
    return {
        "ok": all(grown[what] <= bound for what, bound in GROWTH.items()),
        "figure": round(grown["memory_mb"], 4),
        "target": GROWTH["memory_mb"],
        "unit": "growth of memory from the middle third to the last",
        "minutes": minutes,
        "turns": sum(task.result() for task in talks),
        "grown": {what: round(share, 4) for what, share in grown.items()},
        "first": seen[0],
        "last": seen[-1],
    }


def main() -> int:
    """Run on a data directory of its own; the last line is the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    chosen = options.parse_args()
    os.environ["SOMA_SERVER__REQUESTS_PER_MINUTE"] = "1000000"
    os.environ["SOMA_LOG__KEEP_EVENTS"] = str(KEPT_EVENTS)
    os.environ["SOMA_TRAINING__MIN_NEW_MESSAGES"] = "1000000"
    with (
        tempfile.TemporaryDirectory(prefix="soma-bench-") as home,
        soma_up(home, free_port()) as url,
    ):
        result = asyncio.run(measure(url, home, chosen.minutes))
        result["archived_segments"] = len(list(Path(home).glob("log/archive/*.gz")))
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
