from datetime import UTC, datetime

import pytest

from arbiters.errors import InvalidError
from arbiters.kernel.bus import Publisher
from arbiters.testing import FakeClock, MemoryEventLog
from soma_agents.app.schedule import schedule, weekly_trigger
from soma_agents.settings import load_settings
from soma_agents.storage.identifiers import Uuid7


def test_the_weekly_round_comes_on_its_day_and_time():
    trigger = weekly_trigger("sun 03:00")

    due = trigger.get_next_fire_time(None, datetime(2026, 11, 18, tzinfo=UTC))

    assert (due.strftime("%a %H:%M"), due.day) == ("Sun 03:00", 22)


def test_an_empty_setting_means_no_weekly_round():
    assert weekly_trigger("") is None


@pytest.mark.parametrize("wrong", ["sunday", "03:00", "sun 24:00", "sun 3:00", "xyz 03:00"])
def test_what_is_no_weekday_and_time_is_refused(wrong):
    with pytest.raises(InvalidError, match=r"training.weekly = .*'sun 03:00'"):
        weekly_trigger(wrong)


async def test_each_minute_ticks_once_however_often_it_is_asked(tmp_path):
    log, clock = MemoryEventLog(), FakeClock()
    publisher = Publisher(log=log, clock=clock, ids=Uuid7(), producer="schedule")
    scheduler = schedule(load_settings(tmp_path, environ={}), publisher, clock)
    tick = scheduler.get_job("tick")

    await tick.func()
    await tick.func()

    (said,) = (await log.read(0)).envelopes
    assert said.type == "ClockTicked"


async def test_a_week_has_one_scheduled_round(tmp_path):
    log, clock = MemoryEventLog(), FakeClock()
    publisher = Publisher(log=log, clock=clock, ids=Uuid7(), producer="schedule")
    scheduler = schedule(load_settings(tmp_path, environ={}), publisher, clock)
    weekly = scheduler.get_job("weekly round")

    await weekly.func()
    await weekly.func()

    (said,) = (await log.read(0)).envelopes
    assert (said.type, said.payload) == ("RoundRequested", {"by": "schedule"})
