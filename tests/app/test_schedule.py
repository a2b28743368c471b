import asyncio
import os
import time
from datetime import UTC, datetime, timedelta

import apscheduler.schedulers.base as apscheduler
import pytest

from arbiters.errors import InvalidError
from arbiters.events import ConversationDeleted
from arbiters.kernel.bus import Publisher
from arbiters.testing import FakeClock, MemoryEventLog
from policies.training import Weekly
from soma_agents.app import schedule as schedule_
from soma_agents.app.schedule import Schedule, parse_weekly
from soma_agents.settings import load_settings
from soma_agents.storage.identifiers import Uuid7

FRIDAY = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def zone(monkeypatch):
    """zone(name) puts the process into a time zone."""

    def put(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield put
    os.environ.pop("TZ", None)
    time.tzset()


class World:
    """A schedule, what it said, and a clock to set."""

    def __init__(self, home, start, weekly="sun 03:00"):
        self.log, self.clock = MemoryEventLog(), FakeClock(start)
        self._settings = load_settings(home, environ={}, overrides={"training": {"weekly": weekly}})
        self.publisher = Publisher(log=self.log, clock=self.clock, ids=Uuid7(), producer="test")
        self.again()

    def again(self):
        """As after a restart."""
        self.schedule = Schedule(self._settings, self.publisher, self.log, self.clock)

    async def live(self):
        """Something happens, so that there is something to learn from."""
        await self.publisher.publish(ConversationDeleted(conversation="c"))

    async def at(self, moment):
        self.clock.advance(seconds=(moment - self.clock.now()).total_seconds())
        await self.schedule.pulse()

    async def rounds(self):
        said = (await self.log.read(0, limit=10**6)).envelopes
        return [e.at for e in said if e.type == "RoundRequested"]

    async def ticks(self):
        said = (await self.log.read(0, limit=10**6)).envelopes
        return sum(e.type == "ClockTicked" for e in said)


@pytest.fixture
async def world(tmp_path, zone):
    zone("UTC")
    world = World(tmp_path, FRIDAY)
    await world.live()
    return world


def sunday(weeks=0, **more):
    return datetime(2026, 11, 22, 3, tzinfo=UTC) + timedelta(weeks=weeks, **more)


def test_the_weekly_setting_is_a_weekday_and_a_time():
    assert parse_weekly("sun 03:00") == Weekly(weekday=6, hour=3, minute=0)
    assert parse_weekly("") is None


@pytest.mark.parametrize("wrong", ["sunday", "03:00", "sun 24:00", "sun 3:00", "xyz 03:00"])
def test_what_is_no_weekday_and_time_is_refused(wrong):
    with pytest.raises(InvalidError, match=r"training.weekly = .*'sun 03:00'"):
        parse_weekly(wrong)


async def test_without_a_weekly_round_there_is_only_the_pulse(tmp_path):
    world = World(tmp_path, FRIDAY, weekly="")
    await world.live()

    await world.at(sunday(hours=1))

    assert (await world.ticks(), await world.rounds()) == (1, [])


async def test_a_round_is_asked_for_once_a_week_at_its_time(world):
    for minutes in range(0, 4 * 7 * 24 * 60, 30):
        await world.at(FRIDAY + timedelta(minutes=minutes))

    assert await world.rounds() == [sunday(weeks) for weeks in range(4)]


async def test_a_week_without_anybody_here_is_not_made_up_for(tmp_path):
    world = World(tmp_path, FRIDAY)
    await world.at(FRIDAY)
    await world.live()

    await world.at(FRIDAY + timedelta(days=1))

    assert await world.rounds() == []


async def test_a_round_missed_while_the_machine_was_off_is_asked_for_at_the_next_start(world):
    await world.at(FRIDAY)

    world.again()
    await world.at(sunday(hours=40))

    assert await world.rounds() == [sunday(hours=40)]


async def test_a_restart_asks_for_no_second_round(world):
    await world.at(sunday(minutes=1))

    world.again()
    await world.at(sunday(minutes=2))

    assert await world.rounds() == [sunday(minutes=1)]


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(days=3652)])
async def test_a_clock_set_ahead_and_back_costs_no_week_and_doubles_none(world, jump):
    await world.at(sunday(minutes=-30))
    await world.at(sunday(minutes=-29) + jump)
    await world.at(sunday(minutes=-28))
    for minutes in range(0, 8 * 24 * 60, 30):
        await world.at(sunday(minutes=minutes))

    true = [at for at in await world.rounds() if at < sunday(2)]
    first = sunday(minutes=31) if jump < timedelta(days=1) else sunday()
    assert true == [first, sunday(1)]
    assert await world.ticks() == 3 + 8 * 48


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(days=3652)])
async def test_a_clock_set_back_and_right_again_costs_no_week_and_doubles_none(world, jump):
    await world.at(sunday(minutes=1))
    await world.at(sunday(minutes=2) - jump)
    await world.at(sunday(minutes=3))
    await world.at(sunday(1))

    assert await world.rounds() == [sunday(minutes=1), sunday(1)]


@pytest.mark.parametrize(
    ("start", "weekly"),
    [
        (datetime(2026, 3, 23, tzinfo=UTC), "sun 02:30"),  # the half hour that is left out
        (datetime(2026, 10, 19, tzinfo=UTC), "sun 02:30"),  # the half hour that comes twice
        (datetime(2026, 3, 23, tzinfo=UTC), "mon 00:30"),  # in UTC two mondays in one week
    ],
)
async def test_daylight_saving_loses_no_round_and_doubles_none(tmp_path, zone, start, weekly):
    zone("Europe/Berlin")
    world = World(tmp_path, start, weekly)
    await world.live()

    for minutes in range(0, 21 * 24 * 60, 10):
        await world.at(start + timedelta(minutes=minutes))

    days = [at.astimezone().strftime("%a") for at in await world.rounds()]
    assert days == [weekly[:3].title()] * 3


class Wall(datetime):
    """What APScheduler takes for the time."""

    off = timedelta()

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + cls.off  # noqa: TID251 - this is the clock


class WallClock:
    def now(self):
        return Wall.now(UTC)


@pytest.mark.parametrize("hours", [1, -1, 87_660, -87_660])
async def test_the_pulse_goes_on_when_the_clock_is_set(tmp_path, monkeypatch, hours):
    monkeypatch.setattr(apscheduler, "datetime", Wall)
    monkeypatch.setattr(Wall, "off", timedelta())
    world = World(tmp_path, FRIDAY, weekly="")
    world.clock = WallClock()
    world.again()
    world.schedule.start(every=0.05, look_every=0.02)
    await heard(world, 2)

    Wall.off = timedelta(hours=hours)

    said = await heard(world, await world.ticks() + 4)
    world.schedule.stop()
    assert said < 40  # one after the other, not ten years of them at once


async def heard(world, count):
    async with asyncio.timeout(10):
        while (ticks := await world.ticks()) < count:
            await world.log.read(await world.log.end(), wait=1)
    return ticks


def test_a_look_at_the_clock_is_often_enough_for_the_pulse():
    assert schedule_.LOOK_SECONDS < schedule_.PULSE_SECONDS / 10
