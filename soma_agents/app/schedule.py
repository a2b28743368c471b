"""What the clock starts: the pulse for maintenance and the weekly round.

The clock may stand, jump and go back. A pulse comes a while after the last one, whatever the
clock says meanwhile; each pulse asks whether a weekly round has come due since, so that none is
lost while the machine sleeps or is off, and none is asked for twice.
"""

import asyncio
import re
import time
from datetime import datetime, timedelta
from typing import Any

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from arbiters.errors import InvalidError
from arbiters.events import ClockTicked
from arbiters.kernel.bus import Publisher
from arbiters.model_events import RoundRequested
from arbiters.ports import Clock, EventLog
from policies.training import Weekly, last_due
from soma_agents.settings import Settings

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKLY = re.compile(rf"({'|'.join(_DAYS)}) ([01]\d|2[0-3]):([0-5]\d)")
PULSE_SECONDS = 60.0
LOOK_SECONDS = 1.0
JUMP_SECONDS = 5.0
"""How far the clock may be off from one look to the next before the pulse is planned anew."""

log = structlog.get_logger(__name__)


class Schedule:
    """Says the events of the clock from `start` to `stop`.

    Raises:
        InvalidError: `training.weekly` is not a weekday and a time.
    """

    def __init__(
        self, settings: Settings, publisher: Publisher, events: EventLog, clock: Clock
    ) -> None:
        self._weekly = parse_weekly(settings.training.weekly)
        self._publisher = publisher
        self._events = events
        self._clock = clock
        self._asked: datetime | None = None
        self._scheduler = AsyncIOScheduler()
        self._watch: asyncio.Task[None] | None = None

    def start(self, *, every: float = PULSE_SECONDS, look_every: float = LOOK_SECONDS) -> None:
        """Begin; `every` and `look_every` in seconds."""
        self._scheduler.add_job(
            self.pulse, _Every(every), id="pulse", max_instances=1, misfire_grace_time=None
        )
        self._scheduler.start()
        self._watch = asyncio.create_task(self._follow_the_clock(every, look_every))

    def stop(self) -> None:
        """End; a pulse under way is not waited for."""
        if self._watch is not None:
            self._watch.cancel()
        self._scheduler.shutdown(wait=False)

    async def pulse(self) -> None:
        """Say that time went by, and ask for the weekly round if it is due."""
        now = self._clock.now()
        await self._publisher.publish(ClockTicked(at=now))
        if self._weekly is None:
            return
        due = last_due(self._weekly, now.astimezone())
        if due != self._asked and await self._was_here(due):
            # The log knows which weeks were asked for, whoever asked and however often.
            await self._publisher.publish(
                RoundRequested(by="schedule"), idempotency=f"weekly/{due:%Y-%m-%d}"
            )
        self._asked = due

    async def _was_here(self, moment: datetime) -> bool:
        """Whether there was anything to learn from by then."""
        first = (await self._events.read(0, limit=1)).envelopes
        return bool(first) and first[0].at <= moment

    async def _follow_the_clock(self, every: float, look_every: float) -> None:
        """Plan the pulse anew when the clock was set: it would come years late otherwise."""
        wall, steady = self._clock.now(), time.monotonic()
        while True:
            await asyncio.sleep(look_every)
            before, wall, steady = (wall, steady), self._clock.now(), time.monotonic()
            jump = (wall - before[0]).total_seconds() - (steady - before[1])
            if abs(jump) > JUMP_SECONDS:
                log.warning("the clock was set", seconds=round(jump))
                self._scheduler.reschedule_job("pulse", trigger=_Every(every))


class _Every(BaseTrigger):
    """So many seconds from now, whatever was missed: `interval` goes through all of that."""

    def __init__(self, seconds: float) -> None:
        self._pause = timedelta(seconds=seconds)

    def get_next_fire_time(self, _: Any, now: datetime) -> datetime:  # pyright: ignore[reportIncompatibleMethodOverride] - the base says None
        """See `BaseTrigger`."""
        return now + self._pause


def parse_weekly(weekly: str) -> Weekly | None:
    """`sun 03:00`, in local time; None for an empty string.

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
    return Weekly(weekday=_DAYS.index(day), hour=int(hour), minute=int(minute))
