"""Seconds to the next good answer after a process that carries Ray is killed.

`python -m bench.heads [--rounds 4]` starts a SOMA with `soma up` and kills, `rounds` times each,
with SIGKILL: GCS, raylet, both of the dashboard's agents, and the keeper. Before each kill somebody
says something that was answered; afterwards it must still be in the log, once.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from bench.gateway import soma_up
from bench.round import free_port

ROLES = (
    "ray gcs",
    "ray raylet",
    "ray dashboard agent",
    "ray runtime environment agent",
    "keeper",
)
TARGET_SECONDS = 45.0
PATIENCE_SECONDS = 180.0
SETTLE_SECONDS = 5.0
PAUSE_SECONDS = 0.2
LOOKS = 50


def say(http: httpx2.Client, text: str) -> bool:
    """Whether it was answered."""
    body = {"model": "soma", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    try:
        return http.post("/v1/chat/completions", json=body).is_success
    except httpx2.HTTPError:
        return False


def kept(http: httpx2.Client) -> list[str]:
    """What people said, according to the log."""
    lines = http.get("/api/events", params={"types": "MessageReceived"}).text.splitlines()
    return [json.loads(line)["payload"]["content"] for line in lines]


def processes(home: str) -> list[dict[str, Any]]:
    """What `soma status` knows of processes."""
    soma = str(Path(sys.executable).with_name("soma"))
    answer = subprocess.run(
        [soma, "status", "--home", home, "--json"], check=True, capture_output=True
    )
    return json.loads(answer.stdout)["processes"]


def pid_of(home: str, role: str) -> int:
    """The process of this role; one that just takes another title is looked for again.

    Raises:
        RuntimeError: there is none.
    """
    for _ in range(LOOKS):
        for process in processes(home):
            if process["role"] == role:
                return process["pid"]
        time.sleep(PAUSE_SECONDS)
    raise RuntimeError(f"no process of role {role!r} in {home}")


def recovery(http: httpx2.Client, home: str, role: str, name: str) -> float | None:
    """Seconds from the kill until answers come and go on coming; None: not in time.

    What dies slowly may still answer once: an answer counts when there are others for some
    seconds after it.
    """
    if not say(http, f"before {name}"):
        return None
    began = time.monotonic()
    os.kill(pid_of(home, role), signal.SIGKILL)
    good_since: float | None = None
    while time.monotonic() - began < PATIENCE_SECONDS:
        asked = time.monotonic()
        if not say(http, f"after {name}"):
            good_since = None
        elif good_since is None:
            good_since = time.monotonic()
        elif asked - good_since > SETTLE_SECONDS:
            return good_since - began
        time.sleep(PAUSE_SECONDS)
    return None


def measure(url: str, home: str, rounds: int) -> dict[str, Any]:
    """Kill one after the other."""
    seconds: dict[str, list[float | None]] = {role: [] for role in ROLES}
    with httpx2.Client(base_url=url, timeout=30) as http:
        for number in range(rounds):
            for role in ROLES:
                seconds[role].append(recovery(http, home, role, f"{role} {number}"))
                print(role, seconds[role][-1], file=sys.stderr, flush=True)
        said = kept(http)
    answered = [f"before {role} {number}" for role in ROLES for number in range(rounds)]
    lost = [text for text in answered if said.count(text) != 1]
    every = [value for values in seconds.values() for value in values]
    back = [value for value in every if value is not None]
    worst = max(back, default=PATIENCE_SECONDS)
    return {
        "ok": len(back) == len(every) and worst <= TARGET_SECONDS and not lost,
        "figure": round(worst, 1),
        "target": TARGET_SECONDS,
        "unit": "seconds to the next good answer, at worst",
        "N": len(every),
        "recovered": len(back),
        "lost": len(lost),
        "seconds": {r: [v and round(v, 1) for v in values] for r, values in seconds.items()},
    }


def main() -> int:
    """Run on a data directory of its own; the last line is the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=4, help="kills of each process")
    chosen = options.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="soma-bench-") as home,
        soma_up(home, free_port()) as url,
    ):
        result = measure(url, home, chosen.rounds)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
