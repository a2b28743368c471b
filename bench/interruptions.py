"""What clients see when the gateway is killed, and when SOMA is stopped while it answers.

`python -m bench.interruptions [--kills 5] [--clients 8] [--engines 0]` starts a SOMA with `soma up`.
One client streams one answer after the other while the replica that answers is killed now and then:
at most one request may fail for each kill, and a stream that breaks must say so. With engines of
their own one of those is killed, and nothing may fail: another takes the reply over. Then many clients
stream while `soma down` is called: within 30 seconds everything is gone, and every answer that
had begun came to its end or said that it did not.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from random import Random
from typing import Any

import httpx2
import psutil

from bench.gateway import soma_up, start
from bench.heads import kept, pid_of
from bench.round import free_port

STOP_SECONDS = 30.0
ANSWER_TOKENS = 160


async def stream(http: httpx2.AsyncClient, text: str, tokens: int) -> str:
    """How an answer ended: whole, refused, an error event, or broken off without a word."""
    body = {
        "model": "soma",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "stream": True,
    }
    last = ""
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.is_error:
                return f"refused {answer.status_code}"
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and "error" in json.loads(line[6:]):
                    last = "error event"
                elif line == "data: [DONE]":
                    return last or "whole"
    except httpx2.ConnectError:
        return "not accepted"
    except httpx2.HTTPError:
        return last or "broken off"
    return last or "broken off"


# --- killed --------------------------------------------------------------------------------


async def killed(url: str, home: str, role: str, kills: int, dice: Random) -> dict[str, Any]:
    """One client, one request at a time, and a replica of this role that dies so often."""
    ends: Counter[str] = Counter()
    by_kill: list[int] = []
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
        for number in range(kills):
            task = asyncio.create_task(stream(http, f"Before kill {number}", ANSWER_TOKENS))
            await asyncio.sleep(dice.uniform(0.05, 2.0))
            os.kill(await asyncio.to_thread(pid_of, home, role), signal.SIGKILL)
            seen = [await task]
            while seen[-1] != "whole":
                seen.append(await stream(http, f"After kill {number}", 4))
            by_kill.append(sum(end != "whole" for end in seen))
            print(seen, file=sys.stderr, flush=True)
            ends.update(seen)
    return {"failed_by_kill": by_kill, "ends": dict(ends)}


# --- stopped -------------------------------------------------------------------------------


async def stopped(url: str, home: str, clients: int) -> dict[str, Any]:
    """Clients that keep asking while everything is told to stop."""
    family = psutil.Process(pid_of(home, "supervisor"))
    below = [family, *family.children(recursive=True)]
    ends: Counter[str] = Counter()
    answered: list[str] = []

    async def client(http: httpx2.AsyncClient, number: int) -> None:
        end, turn = "whole", 0
        while end == "whole":
            text = f"Client {number}, turn {turn}"
            end = await stream(http, text, ANSWER_TOKENS)
            ends[end] += 1
            answered.extend([text] if end == "whole" else [])
            turn += 1

    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
        talks = [asyncio.create_task(client(http, number)) for number in range(clients)]
        await asyncio.sleep(6)
        began = time.perf_counter()
        family.send_signal(signal.SIGTERM)
        await asyncio.to_thread(psutil.wait_procs, below, timeout=3 * STOP_SECONDS)
        seconds = time.perf_counter() - began
        await asyncio.wait(talks)
    return {"seconds": round(seconds, 1), "ends": dict(ends), "answered": answered}


# --- the figure ----------------------------------------------------------------------------


def verdict(
    kill: dict[str, Any], stop: dict[str, Any], said: list[str], *, bearable: int
) -> dict[str, Any]:
    """The figures, and whether all that was answered is still known."""
    answered = stop.pop("answered")
    lost = [text for text in answered if said.count(text) != 1]
    worst = max(kill["failed_by_kill"], default=0)
    silent = kill["ends"].get("broken off", 0) + stop["ends"].get("broken off", 0)
    return {
        "ok": worst <= bearable and not silent and not lost and stop["seconds"] <= STOP_SECONDS,
        "figure": worst,
        "target": bearable,
        "unit": "failed requests a kill, at worst",
        "N": len(kill["failed_by_kill"]),
        "killed": kill,
        "stopped": stop,
        "stop_target_s": STOP_SECONDS,
        "broken_off_without_a_word": silent,
        "lost": len(lost),
    }


def main() -> int:
    """Run on a data directory of its own; the last line is the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--engines", type=int, default=0, help="apart from the gateway")
    chosen = options.parse_args()
    os.environ["SOMA_CLUSTER__ENGINES"] = str(chosen.engines)
    if chosen.engines:
        os.environ["SOMA_ENGINE__THREADS"] = "1"  # two teams of threads would fight for the cores
    role, bearable = ("engine", 0) if chosen.engines else ("gateway", 1)
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as home:
        port = free_port()
        with soma_up(home, port) as url:
            kill = asyncio.run(killed(url, home, role, chosen.kills, Random(chosen.seed)))
            stop = asyncio.run(stopped(url, home, chosen.clients))
            start(home, port)
            with httpx2.Client(base_url=url, timeout=60) as http:
                said = kept(http)
    result = verdict(kill, stop, said, bearable=bearable)
    result |= {"seed": chosen.seed, "engines": chosen.engines}
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
