"""The event log's contract, kept across processes and across the bus's deaths."""

import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path

import pytest
import ray

from arbiters.errors import UnavailableError
from soma_agents.cluster.bus import MAX_CALLS, Bus, RayEventLog, decode, encode
from soma_agents.cluster.names import NAMESPACE
from soma_agents.storage.event_log import SqliteEventLog
from tests.contracts.test_event_log import *  # noqa: F403 - the same suite over this log
from tests.contracts.test_event_log import said

pytestmark = pytest.mark.ray


def no_preparation(_name):
    pass


class ReopenedBus(Bus):
    """One actor for all tests, each with a fresh file: starting an actor takes seconds."""

    async def reopen(self, path):
        await self._log.close()
        self._log = await SqliteEventLog.open(path)
        self._written.clear()

    async def pid(self):
        return os.getpid()


@pytest.fixture(scope="module")
def bus(ray_cluster):
    # The workers have no tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    name = f"bus-{uuid.uuid4().hex[:6]}"
    options = {"name": name, "namespace": NAMESPACE, "max_restarts": -1, "num_cpus": 0}
    actor = ray.remote(ReopenedBus).options(max_concurrency=MAX_CALLS, **options)
    handle = actor.remote(ray_cluster.model_dump_json(), no_preparation)
    yield name, handle
    ray.kill(handle)


@pytest.fixture
async def log(bus, tmp_path):
    name, handle = bus
    await handle.reopen.remote(tmp_path / "events.db")
    log = RayEventLog(name=name)
    yield log
    await log.close()


def test_a_batch_survives_the_wire_with_every_number_and_letter():
    envelope = said("a", payload={"n": [1, 0.1, None], "text": "ü\x00🦜", "inf": float("inf")})

    assert decode(encode([envelope])) == [envelope]
    (back,) = decode(encode([said("b", payload={"n": float("nan")})]))
    assert back.payload["n"] != back.payload["n"]


async def test_appends_under_way_when_the_bus_is_killed_are_all_stored_once(bus, log, ray_cluster):
    _, handle = bus
    await handle.reopen.remote(ray_cluster.log_file)  # where it comes back
    pid = await handle.pid.remote()
    loading = [asyncio.create_task(log.append([said(f"{n}")])) for n in range(300)]
    await loading[0]

    os.kill(pid, signal.SIGKILL)
    await asyncio.wait(loading)

    stored = (await log.read(0, limit=1000)).envelopes
    assert sorted(envelope.id for envelope in stored) == sorted(f"{n}" for n in range(300))
    assert [envelope.offset for envelope in stored] == list(range(1, 301))
    assert {task.result()[0] for task in loading} == set(range(1, 301))


@pytest.mark.usefixtures("ray_cluster")
async def test_a_bus_that_never_comes_is_unavailable_after_the_patience():
    log = RayEventLog(name="nobody", patience=0.3)

    with pytest.raises(UnavailableError, match="nobody did not answer 'end'"):
        await log.end()


async def test_who_is_on_the_machine_of_the_bus_has_a_line_to_it(log):
    await log.append([said("a")])

    assert log._line is not None
    assert not log._line.broken


async def test_who_has_no_line_reaches_the_bus_through_ray(bus, log):
    _, handle = bus
    door = Path(await handle.door.remote())
    hidden = await asyncio.to_thread(door.rename, door.with_name("elsewhere"))
    try:
        assert await log.append([said("a"), said("b")]) == [1, 2]
        assert [one.id for one in (await log.read(0)).envelopes] == ["a", "b"]
        assert log._line is None
    finally:
        await asyncio.to_thread(hidden.rename, door)
