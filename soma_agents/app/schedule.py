"""What the clock starts: the pulse for maintenance and the weekly round."""

import re
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from arbiters.errors import InvalidError
from arbiters.events import ClockTicked, RoundRequested
from arbiters.kernel.bus import Publisher
from arbiters.ports import Clock
from soma_agents.settings import Settings

_WEEKLY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun) ([01]\d|2[0-3]):([0-5]\d)")
_LATE_SECONDS = 3600
"""A job that was missed by less, while the machine slept, is still done."""


def schedule(settings: Settings, publisher: Publisher, clock: Clock) -> AsyncIOScheduler:
    """A scheduler, not yet started, that says the events of the clock.

    Raises:
        InvalidError: `training.weekly` is not a weekday and a time.
    """
    weekly = weekly_trigger(settings.training.weekly)

    async def tick() -> None:
        now = clock.now()
        await publisher.publish(ClockTicked(at=now), idempotency=f"clock/{now:%Y-%m-%dT%H:%M}")

    async def ask_for_round() -> None:
        await publisher.publish(
            RoundRequested(by="schedule"), idempotency=f"weekly/{clock.now():%G-W%V}"
        )

    options: dict[str, Any] = {
        "coalesce": True,
        "max_instances": 1,
        "misfire_grace_time": _LATE_SECONDS,
    }
    scheduler = AsyncIOScheduler()
    scheduler.add_job(tick, "interval", minutes=1, id="tick", **options)
    if weekly is not None:
        scheduler.add_job(ask_for_round, weekly, id="weekly round", **options)
    return scheduler


def weekly_trigger(weekly: str) -> CronTrigger | None:
    """The trigger for `sun 03:00`, in local time; None for an empty string.

    Raises:
        InvalidError: it is neither.
    """
    if not weekly:
        return None
    found = _WEEKLY.fullmatch(weekly.lower())
    if found is None:
        raise InvalidError(
            f"setting training.weekly = {weekly!r} is not a weekday and a time such as 'sun 03:00'"
        )
    day, hour, minute = found.groups()
    return CronTrigger(day_of_week=day, hour=int(hour), minute=int(minute))
