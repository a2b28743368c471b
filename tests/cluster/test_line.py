"""Calls over a socket: answered, refused, broken off, under both event loops."""

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from arbiters.errors import BusyError, NotFoundError
from soma_agents.cluster.line import Exchange, Line

LARGE = 5_000_000


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request):
    """Ray's actors have uvloop's, the command line has Python's own."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


@asynccontextmanager
async def line_to(**methods):
    # A short path: the address of a socket holds a hundred bytes.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "door"
        exchange = Exchange(methods)
        await exchange.open(path)
        line = await Line.open(path)
        try:
            yield line, exchange
        finally:
            line.close()
            exchange.close()
            await asyncio.sleep(0)


async def echo(body):
    return body


async def refuse(body):
    raise BusyError(body.decode(), retry_after=7.5)


async def miss(body):
    raise NotFoundError(body.decode())


async def fail(_):
    raise ZeroDivisionError


def test_a_call_brings_back_what_the_method_returns_however_large(runner):
    async def calls():
        async with line_to(echo=echo) as (line, _):
            return [await line.call("echo", body) for body in (b"", b"word", b"x" * LARGE)]

    assert runner.run(calls()) == [b"", b"word", b"x" * LARGE]


def test_calls_do_not_wait_for_each_other(runner):
    async def calls():
        go_on = asyncio.Event()

        async def wait(body):
            await go_on.wait()
            return body

        async def release(body):
            go_on.set()
            return body

        async with line_to(wait=wait, release=release) as (line, _), asyncio.timeout(5):
            slow = asyncio.create_task(line.call("wait", b"slow"))
            return [await line.call("release", b"quick"), await slow]

    assert runner.run(calls()) == [b"quick", b"slow"]


def test_an_error_of_ours_arrives_as_it_was_raised(runner):
    async def calls():
        async with line_to(refuse=refuse, miss=miss, echo=echo) as (line, _):
            with pytest.raises(BusyError, match="no room") as caught:
                await line.call("refuse", b"no room")
            with pytest.raises(NotFoundError, match="nothing there"):
                await line.call("miss", b"nothing there")
            return caught.value.retry_after, await line.call("echo", b"still there")

    assert runner.run(calls()) == (7.5, b"still there")


def test_any_other_error_breaks_the_line(runner):
    async def calls():
        async with line_to(fail=fail, echo=echo) as (line, _):
            with pytest.raises(ConnectionError):
                await line.call("fail", b"")
            assert line.broken
            with pytest.raises(ConnectionError):
                await line.call("echo", b"")

    runner.run(calls())


def test_who_waits_is_told_when_the_other_end_hangs_up(runner):
    async def calls():
        async def wait(_):
            await asyncio.Event().wait()

        async with line_to(wait=wait) as (line, exchange), asyncio.timeout(5):
            call = asyncio.create_task(line.call("wait", b""))
            await asyncio.sleep(0.01)

            exchange.close()

            with pytest.raises(ConnectionError):
                await call

    runner.run(calls())


def test_what_a_caller_who_left_had_asked_for_disturbs_nobody(runner):
    async def calls():
        go_on = asyncio.Event()

        async def wait(body):
            await go_on.wait()
            return body

        async with line_to(wait=wait, echo=echo) as (line, _), asyncio.timeout(5):
            call = asyncio.create_task(line.call("wait", b"late"))
            await asyncio.sleep(0.01)
            call.cancel()
            go_on.set()
            return await line.call("echo", b"next")

    assert runner.run(calls()) == b"next"
