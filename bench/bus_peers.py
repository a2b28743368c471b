"""What the bus is measured against: the same messages to as many subscribers, by others."""

import asyncio
import multiprocessing
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUP = 500
STREAM = "events"
START_SECONDS = 20.0


@dataclass
class Said:
    """A message of autogen-core."""

    number: int
    text: str


def autogen_core(events: int, subscribers: int, text: str) -> float:
    """Events a second of its in-memory runtime, which keeps nothing."""
    return asyncio.run(_autogen_core(events, subscribers, text))


async def _autogen_core(events: int, subscribers: int, text: str) -> float:
    from autogen_core import (
        MessageContext,
        RoutedAgent,
        SingleThreadedAgentRuntime,
        TopicId,
        TypeSubscription,
        message_handler,
    )

    heard = [0] * subscribers

    class Tally(RoutedAgent):
        def __init__(self, place: int) -> None:
            super().__init__("counts")
            self.place = place

        @message_handler
        async def count(self, message: Said, ctx: MessageContext) -> None:  # noqa: ARG002
            heard[self.place] += 1

    runtime = SingleThreadedAgentRuntime()
    for place in range(subscribers):
        await Tally.register(runtime, f"tally{place}", lambda place=place: Tally(place))
        await runtime.add_subscription(TypeSubscription(STREAM, f"tally{place}"))
    runtime.start()
    began = time.perf_counter()
    for number in range(events):
        await runtime.publish_message(Said(number, text), TopicId(STREAM, "default"))
    await runtime.stop_when_idle()
    seconds = time.perf_counter() - began
    if heard != [events] * subscribers:
        raise RuntimeError(f"autogen-core: {events} messages were published, {heard} were heard")
    return round(events / seconds)


# --- redis ---------------------------------------------------------------------------------


def redis_streams(events: int, subscribers: int, text: str, directory: Path) -> float | None:
    """Events a second through a stream that is synced at every write; None without a server."""
    server = shutil.which("redis-server")
    if server is None:
        return None
    with _redis(server, directory) as port:
        spawn: Any = multiprocessing.get_context("spawn")
        ready = spawn.Barrier(subscribers + 2)
        consumers = [
            spawn.Process(target=_consume, args=(port, f"group{n}", events, ready))
            for n in range(subscribers)
        ]
        publisher = spawn.Process(target=_publish, args=(port, events, text, ready))
        for process in (*consumers, publisher):
            process.start()
        ready.wait()
        began = time.perf_counter()
        for process in (publisher, *consumers):
            process.join()
            if process.exitcode:
                raise RuntimeError(f"{process.name} of redis ended with {process.exitcode}")
        return round(events / (time.perf_counter() - began))


@contextmanager
def _redis(server: str, directory: Path) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _until(lambda: bool(_client(port).ping()))
            yield port
        finally:
            process.terminate()


def _until(there: Callable[[], bool]) -> None:
    import redis

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if there():
                return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _client(port: int) -> Any:
    import redis

    return redis.Redis(port=port)


def _publish(port: int, events: int, text: str, ready: Any) -> None:
    client = _client(port)
    ready.wait()
    for start in range(0, events, GROUP):
        pipe = client.pipeline(transaction=False)
        for number in range(start, min(start + GROUP, events)):
            pipe.xadd(STREAM, {"number": number, "text": text})
        pipe.execute()


def _consume(port: int, group: str, events: int, ready: Any) -> None:
    client = _client(port)
    client.xgroup_create(STREAM, group, id="0", mkstream=True)
    ready.wait()
    heard = 0
    while heard < events:
        for _, entries in client.xreadgroup(group, "one", {STREAM: ">"}, count=GROUP, block=5000):
            heard += len(entries)
            client.xack(STREAM, group, *(identity for identity, _ in entries))
