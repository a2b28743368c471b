"""What is known of the person who asks, fetched beside the message and never waited for long."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from arbiters.errors import SomaError
from arbiters.kernel.directory import Directory
from policies.personality import describe
from soma_agents.serving.specialist import Known

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 0.5
"""A chat goes on without the newest facts rather than wait longer for an arbiter."""
KEPT = 1_000
T = TypeVar("T")


class People:
    """Asks profile and personality; falls back on the last answer when an arbiter is not there."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._last: OrderedDict[tuple[str, str], Known] = OrderedDict()

    async def known(self, tenant: str, user: str) -> Known:
        """What shapes the system message for this user."""
        last = self._last.get((tenant, user), Known())
        async with asyncio.TaskGroup() as group:
            facts = group.create_task(_or(last.facts, lambda: self._facts(tenant, user)))
            words = group.create_task(_or(last.personality, lambda: self._words(tenant, user)))
        known = Known(facts=facts.result(), personality=words.result())
        self._last[tenant, user] = known
        self._last.move_to_end((tenant, user))
        while len(self._last) > KEPT:
            self._last.popitem(last=False)
        return known

    async def _facts(self, tenant: str, user: str) -> tuple[str, ...]:
        facts = await self._directory.ask("user_profile", "profile", tenant=tenant, user=user)
        return tuple(f"{fact.subject.replace('.', ' ')}: {fact.value}." for fact in facts)

    async def _words(self, tenant: str, user: str) -> str:
        revision = await self._directory.ask(
            "personality_forge", "current", tenant=tenant, user=user
        )
        return describe(revision.dimensions)


async def _or(last: T, ask: Callable[[], Awaitable[T]]) -> T:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await ask()
    except (SomaError, TimeoutError) as error:
        log.warning("answering without the newest knowledge of the user", error=repr(error))
        return last
