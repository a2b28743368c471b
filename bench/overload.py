"""Ten times the load that can be borne, for a minute: `python -m bench.overload [--seconds 60]`.

Starts a SOMA with `soma up` and three keys. First a crowd shows for as long how many answers a second
there can be. Then one key asks at ten times that rate, whatever comes back, while another asks one
question at a time. Good: almost as many answers as without the flood, every other request refused
at once with 429 or 503 and `Retry-After`, the quiet one served, memory bounded, and all as before
half a minute later.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import uvloop

from bench.gateway import soma_up
from bench.knocking import OK, Client
from bench.round import free_port
from soma_agents.app.state import state_file
from soma_agents.settings import load_settings
from soma_agents.storage.identifiers import SystemClock
from soma_agents.storage.keys import ApiKeys

TIMES = 10
CROWD = 64
ANSWER_TOKENS = 16
PATIENCE_SECONDS = 120.0
GOODPUT, REFUSAL_SECONDS, NORMAL_SECONDS, GROWTH_BYTES = 0.9, 1.0, 30.0, 500_000_000
SLOWER = 1.5
"""Against the first answers, what still counts as normal."""
_questions = itertools.count(10_000)
"""No two questions are alike: one that was asked before would be read in no time."""


@dataclass
class Tally:
    """What came back to one caller."""

    answered: list[float] = field(default_factory=list[float])
    """Seconds from the start of the flood."""
    refusals: list[float] = field(default_factory=list[float])
    """Seconds that a refusal took."""
    statuses: Counter[str] = field(default_factory=Counter[str])

    def rate(self, seconds: float) -> float:
        """Answers a second, of those that came within so many."""
        return sum(at <= seconds for at in self.answered) / seconds

    async def ask(self, http: Client, began: float) -> None:
        """One question, and what became of it."""
        content = f"Question {next(_questions)}: why is the sky blue?"
        body = {
            "model": "soma",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": ANSWER_TOKENS,
        }
        asked = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await http.post("/v1/chat/completions", json.dumps(body).encode())
        except (OSError, TimeoutError) as error:
            self.statuses[type(error).__name__] += 1
            return
        now = time.perf_counter()
        if answer.status == OK:
            self.answered.append(now - began)
        elif answer.status in (429, 503) and answer.says_when:
            self.refusals.append(now - asked)
        self.statuses[str(answer.status)] += 1


async def peak(url: str, key: str, seconds: float) -> float:
    """Answers a second to a crowd in which everybody waits for an answer before asking again."""
    tally, began = Tally(), time.perf_counter()

    async def one(http: Client) -> None:
        while time.perf_counter() - began < seconds:
            await tally.ask(http, began)

    async with Client(url, key) as http, asyncio.TaskGroup() as group:
        for _ in range(CROWD):
            group.create_task(one(http))
    return tally.rate(seconds)


async def flood(http: Client, rate: float, seconds: float) -> Tally:
    """Ask `rate` times a second, whatever comes back, as from another machine: without interrupting."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    tally, began = Tally(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            group.create_task(tally.ask(http, began))
    return tally


async def one_at_a_time(http: Client, stop: asyncio.Event) -> Tally:
    """A caller who waits for each answer."""
    tally, began = Tally(), time.perf_counter()
    while not stop.is_set():
        await tally.ask(http, began)
        await asyncio.sleep(0.5)
    return tally


async def alone(http: Client) -> float:
    """Seconds that an answer takes when nobody else asks."""
    tally, began = Tally(), time.perf_counter()
    await tally.ask(http, began)
    return time.perf_counter() - began if tally.answered else float("inf")


async def until_normal(http: Client, usual: float) -> float:
    """Seconds until an answer takes as long as it did before; infinite when it never does."""
    began = time.perf_counter()
    while time.perf_counter() - began < 2 * NORMAL_SECONDS:
        asked = time.perf_counter()
        if await alone(http) <= SLOWER * usual:
            return asked - began
    return float("inf")


def memory(home: str) -> int:
    """Bytes that all processes of a SOMA hold, what they share counted once."""
    pid = json.loads(state_file(Path(home)).read_text())["pid"]
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_full_info().pss for process in family if process.is_running())


async def _memory_at(seconds: float, home: str) -> int:
    """When all have asked and most still wait. Not before: adding it up takes a core a second."""
    await asyncio.sleep(seconds)
    return await asyncio.to_thread(memory, home)


async def measure(url: str, home: str, keys: list[str], seconds: float) -> dict[str, Any]:
    """Calm, flood, calm."""
    best = await peak(url, keys[0], seconds)
    stop = asyncio.Event()
    async with Client(url, keys[1]) as loud, Client(url, keys[2]) as quiet:
        usual = median([await alone(quiet) for _ in range(5)])
        before = memory(home)
        polite = asyncio.create_task(one_at_a_time(quiet, stop))
        fullest = asyncio.create_task(_memory_at(seconds, home))
        tally = await flood(loud, TIMES * best, seconds)
        stop.set()
        normal = await until_normal(quiet, usual)
        served, growth = await polite, await fullest - before
    return verdict(best, seconds, tally, served, normal=normal, growth=growth)


def verdict(
    best: float, seconds: float, tally: Tally, served: Tally, *, normal: float, growth: int
) -> dict[str, Any]:
    """The figures."""
    share = (tally.rate(seconds) + served.rate(seconds)) / best
    odd = tally.statuses.total() - len(tally.answered) - len(tally.refusals)
    slow = quantiles(tally.refusals, n=20)[-1] if len(tally.refusals) > 1 else float("inf")
    turned_away = served.statuses.total() - len(served.answered)
    return {
        "ok": share >= GOODPUT
        and not odd
        and slow <= REFUSAL_SECONDS
        and normal <= NORMAL_SECONDS
        and growth <= GROWTH_BYTES
        and turned_away <= served.statuses.total() / 10,
        "figure": round(share, 2),
        "target": GOODPUT,
        "unit": "answers in a flood, of the most without one",
        "peak_answers_per_s": round(best, 2),
        "asked_per_s": round(TIMES * best, 1),
        "N": tally.statuses.total(),
        "statuses": dict(tally.statuses),
        "refused_p95_s": round(slow, 3),
        "neither_answered_nor_refused": odd,
        "quiet_caller": dict(served.statuses),
        "normal_after_s": round(normal, 1),
        "memory_growth_mb": round(growth / 1e6),
    }


def main() -> int:
    """Run on a data directory of its own; the last line is the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60, help="how long the flood lasts")
    chosen = options.parse_args()
    # How often one may ask is a limit of its own; here the places have to hold.
    os.environ["SOMA_SERVER__REQUESTS_PER_MINUTE"] = "1000000"
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as home:
        store = ApiKeys(load_settings(Path(home)).keys_file, SystemClock())
        keys = [store.create(name, user=name) for name in ("crowd", "loud", "quiet")]
        with soma_up(home, free_port()) as url:
            result = uvloop.run(measure(url, home, keys, chosen.seconds))
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
