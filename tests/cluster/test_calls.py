import asyncio
import sys
import uuid

import pytest
import ray

from arbiters.errors import BusyError, UnavailableError
from soma_agents.cluster.calls import NamedActor
from soma_agents.cluster.names import NAMESPACE

pytestmark = pytest.mark.ray


class Callee:
    def __init__(self):
        self.noted = []
        self._began = asyncio.Event()

    async def began(self):
        await self._began.wait()

    async def note(self, word, seconds=0.0):
        self._began.set()
        await asyncio.sleep(seconds)
        self.noted.append(word)
        return list(self.noted)

    async def refuse(self):
        raise BusyError("full", retry_after=7)


class Caller:
    """Stands for a request: what it began goes on when it is cancelled."""

    def __init__(self, callee):
        self._callee = NamedActor(callee)

    async def request(self):
        self._call = asyncio.create_task(self._callee.call("note", "kept", 0.4, again=False))
        await asyncio.shield(self._call)

    async def outcome(self):
        return await self._call


@pytest.fixture
def callee(ray_cluster):
    assert ray_cluster.cluster.address
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    name = f"callee-{uuid.uuid4().hex[:6]}"
    options = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": 0}
    handle = ray.remote(Callee).options(**options).remote()
    yield name
    ray.kill(handle)


async def test_our_own_errors_come_back_as_they_were_raised(callee):
    with pytest.raises(BusyError, match="full") as caught:
        await NamedActor(callee).call("refuse", again=False)

    assert type(caught.value) is BusyError
    assert caught.value.retry_after == 7


async def test_a_cancelled_request_does_not_cancel_what_it_wanted_kept(callee):
    caller = ray.remote(Caller).options(num_cpus=0).remote(callee)
    request = caller.request.remote()
    await ray.get_actor(callee, NAMESPACE).began.remote()

    ray.cancel(request, recursive=True)

    assert await caller.outcome.remote() == ["kept"]
    ray.kill(caller)


async def test_a_call_that_must_not_be_repeated_is_not(callee):
    actor = NamedActor(callee)
    slow = asyncio.create_task(actor.call("note", "never", 30, again=False))
    await ray.get_actor(callee, NAMESPACE).began.remote()

    ray.kill(ray.get_actor(callee, NAMESPACE))

    with pytest.raises(UnavailableError, match="died during 'note'"):
        await slow
    ray.remote(Callee).options(name=callee, namespace=NAMESPACE, num_cpus=0).remote()
