"""The bus beside its peers: durable events a second to six arbiters, and how soon they are heard.

`python -m bench.bus` starts a Ray of its own with the bus and six arbiters as actors, each with
its database, ledger and host as in SOMA. Every event is on disk before it is heard, and every
arbiter commits where it is. The peers hand the same number of messages to six subscribers in the
same run: autogen-core's in-memory runtime, and Redis Streams with `appendfsync always`, six consumer
groups and a publisher, each in a process of its own.
"""

import argparse
import asyncio
import importlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import ray

from arbiters.envelope import Envelope
from arbiters.events import MessageReceived
from arbiters.kernel.arbiter import Arbiter, on, query
from arbiters.kernel.bus import Publisher
from arbiters.kernel.host import Host
from bench.bus_peers import autogen_core, redis_streams
from soma_agents.cluster import head
from soma_agents.cluster.bus import MAX_CALLS, Bus, RayEventLog, spare_the_collector
from soma_agents.cluster.names import BUS, NAMESPACE
from soma_agents.settings import load_settings
from soma_agents.storage.database import Database
from soma_agents.storage.identifiers import SystemClock, Uuid7
from soma_agents.storage.ledger import SqliteLedger

ARBITERS = 6
EVENTS = 60_000
PEER_EVENTS = 10_000
GROUP = 500
GROUPS_UNDER_WAY = 4
RATE = 1_000
RATE_SECONDS = 10
SETTLE_SECONDS = 15
"""Ray goes on starting processes of its own after it says that it is there."""
TARGET = 20_000
TARGET_P50_MS, TARGET_P99_MS = 10.0, 50.0
TEXT = "What is a good way to spend a rainy afternoon at home?"


class Tally(Arbiter):
    """Counts what it hears; the message says when it was published, on the machine's clock."""

    name = "tally"

    def __init__(self) -> None:
        self.heard = 0
        self.published: list[float] = []
        self.delays: list[float] = []

    @on(MessageReceived)
    async def count(self, event: MessageReceived, _: Envelope) -> None:
        """One more."""
        self.heard += 1
        self.published.append(float(event.message))

    @query
    async def so_far(self) -> int:
        """How many were heard."""
        return self.heard


class TimedHost(Host):
    """Notes after each commit how old its events are."""

    arbiter: Tally

    async def step(self, *, wait: float) -> int:
        """See `Host.step`."""
        heard = await super().step(wait=wait)
        now = time.monotonic()
        self.arbiter.delays += [now - at for at in self.arbiter.published]
        self.arbiter.published.clear()
        return heard


class TallyActor:
    """An arbiter in a process of its own, hosted as SOMA's are."""

    async def __init__(self, path: str) -> None:
        spare_the_collector()
        self._database = await Database.open(Path(path), SqliteLedger.schema)
        self._tally = Tally()
        self._host = TimedHost(
            self._tally,
            log=RayEventLog(),
            ledger=SqliteLedger(self._database),
            clock=SystemClock(),
            ids=Uuid7(),
        )
        self._task = asyncio.create_task(self._host.run())

    async def reached(self, offset: int) -> int:
        """Wait until everything up to this offset is committed; how many were heard."""
        return await self._host.ask("so_far", {}, at_least=offset, patience=120)

    async def delays(self) -> list[float]:
        """Seconds from publishing to commit since the last call."""
        found, self._tally.delays = self._tally.delays, []
        return found


class Publishing:
    """A publisher in a process of its own."""

    def __init__(self) -> None:
        spare_the_collector()
        self._log = RayEventLog()
        self._publisher = Publisher(
            log=self._log, clock=SystemClock(), ids=Uuid7(), producer="bench"
        )

    def _said(self, number: int) -> Envelope:
        event = MessageReceived(
            conversation=f"c{number % 97}", message=repr(time.monotonic()), content=TEXT
        )
        return self._publisher.wrap(event)

    async def flood(self, events: int) -> int:
        """As fast as the bus takes them, in groups; the last offset."""
        room = asyncio.Semaphore(GROUPS_UNDER_WAY)
        last = 0

        async def send(group: Sequence[Envelope]) -> None:
            nonlocal last
            last = max(last, (await self._publisher.publish_all(group))[-1])
            room.release()

        async with asyncio.TaskGroup() as tasks:
            for start in range(0, events, GROUP):
                await room.acquire()
                tasks.create_task(send([self._said(start + i) for i in range(GROUP)]))
        return last

    async def pace(self, rate: int, seconds: int) -> int:
        """So many events a second, each by itself; the last offset."""
        last, began = 0, time.monotonic()

        async def send(number: int) -> None:
            nonlocal last
            last = max(last, (await self._publisher.publish_all([self._said(number)]))[0])

        async with asyncio.TaskGroup() as tasks:
            for number in range(rate * seconds):
                if (wait := began + number / rate - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(send(number))
        return last


def prepare(_name: str) -> None:
    """Nothing to set up."""


async def each(actors: Sequence[Any], method: str, *arguments: Any) -> list[Any]:
    """The answers of all actors, asked at once."""
    asked = [getattr(actor, method).remote(*arguments) for actor in actors]
    return [await answer for answer in asked]


async def measure(home: Path) -> dict[str, Any]:
    """Flood, then pace."""
    settings = load_settings(home, environ={})
    options = {"namespace": NAMESPACE, "num_cpus": 0, "max_concurrency": MAX_CALLS}
    bus: Any = (
        ray.remote(Bus).options(name=BUS, **options).remote(settings.model_dump_json(), prepare)
    )
    await bus.end.remote()
    publishing: Any = ray.remote(Publishing).options(num_cpus=0).remote()
    arbiters: list[Any] = [
        ray.remote(TallyActor).options(num_cpus=0).remote(str(home / f"tally{n}.db"))
        for n in range(ARBITERS)
    ]
    warm = await publishing.flood.remote(GROUP)
    await each(arbiters, "reached", warm)
    await asyncio.sleep(SETTLE_SECONDS)
    began = time.perf_counter()
    last = await publishing.flood.remote(EVENTS)
    published = time.perf_counter() - began
    heard = await each(arbiters, "reached", last)
    handled = time.perf_counter() - began
    if set(heard) != {GROUP + EVENTS}:
        raise RuntimeError(f"{GROUP + EVENTS} events were published, the arbiters heard {heard}")
    await each(arbiters, "delays")
    paced = await publishing.pace.remote(RATE, RATE_SECONDS)
    await each(arbiters, "reached", paced)
    delays = [delay for found in await each(arbiters, "delays") for delay in found]
    cuts = quantiles(delays, n=100)
    return {
        "events_per_s": round(EVENTS / handled),
        "published_per_s": round(EVENTS / published),
        "p50_ms": round(1e3 * cuts[49], 2),
        "p99_ms": round(1e3 * cuts[98], 2),
    }


def main() -> int:
    """Everything in one run; the last line is the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--alone", action="store_true", help="leave the peers out")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as directory:
        head.start(load_settings(Path(directory), environ={}))
        own = asyncio.run(measure(Path(directory)))
        head.stop()
        peers = {}
        if not chosen.alone:
            peers["autogen-core in memory"] = autogen_core(PEER_EVENTS, ARBITERS, TEXT)
            peers["redis streams appendfsync always"] = redis_streams(
                PEER_EVENTS, ARBITERS, TEXT, Path(directory)
            )
    ahead = all(rate is not None and own["events_per_s"] > rate for rate in peers.values())
    fast = own["p50_ms"] <= TARGET_P50_MS and own["p99_ms"] <= TARGET_P99_MS
    result = {
        "ok": own["events_per_s"] >= TARGET and fast and ahead,
        "figure": own["events_per_s"],
        "target": TARGET,
        "unit": f"durable events a second, each handled by {ARBITERS} arbiters on Ray",
        "N": EVENTS,
        **own,
        "p50_target_ms": TARGET_P50_MS,
        "p99_target_ms": TARGET_P99_MS,
        "peers": peers,
        "ratios": {n: round(own["events_per_s"] / r, 2) for n, r in peers.items() if r},
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    # Under its real name, so that the actors' processes find these classes by import.
    raise SystemExit(importlib.import_module("bench.bus").main())
