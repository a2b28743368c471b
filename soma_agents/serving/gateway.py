"""The life of a message: placed, admitted, kept, answered. Knows nothing of HTTP."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from arbiters.errors import NotFoundError, UnavailableError
from arbiters.events import ChatMessage, Envelope, MessageReceived
from arbiters.kernel.bus import Publisher
from arbiters.kernel.directory import Directory
from arbiters.ports import EventLog, Ids
from soma_agents.language.sampling import Sampling
from soma_agents.serving.backend import Backend
from soma_agents.serving.people import People
from soma_agents.serving.rollout import Rollout, Routed
from soma_agents.serving.specialist import Known, Prepared, Specialist
from soma_agents.serving.threads import Threads
from soma_agents.serving.turns import Placed, Turn

log = structlog.get_logger(__name__)

HISTORY = 1_000
"""Messages of a conversation read at most; more would not fit any context."""
REMEMBERED = 10_000
LEAVE_SECONDS = 5.0
"""For turns that were broken off to keep what they had said."""


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom something is done."""

    tenant: str = "local"
    user: str = "owner"

    @property
    def account(self) -> str:
        """Whose turn it is in the engine, and whose prompts it keeps: one person's, not a tenant's."""
        return f"{self.tenant}/{self.user}"


class Gateway:
    """Takes messages, gives turns."""

    def __init__(
        self,
        *,
        engine: Backend,
        specialist: Specialist,
        rollout: Rollout,
        directory: Directory,
        log: EventLog,
        publisher: Publisher,
        ids: Ids,
    ) -> None:
        self._engine = engine
        self._specialist = specialist
        self._rollout = rollout
        self._directory = directory
        self._log = log
        self._publisher = publisher
        self._ids = ids
        self.people = People(directory, log)
        self.threads = Threads()
        self._turns: dict[asyncio.Task[None], Turn] = {}
        self._offsets: OrderedDict[str, int] = OrderedDict()
        self._stopping = False

    # --- running ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Learn where conversations stand."""
        await self.people.start()
        await self.threads.rebuild(self._log)

    async def drain(self, seconds: float) -> None:
        """Take no more turns, and wait so long for those under way; break off what is left then.

        Whoever listens to one that is broken off is told; what it had said is kept.
        """
        self._stopping = True
        await self._turns_end(seconds)
        for turn in self._turns.values():
            turn.break_off(UnavailableError("SOMA is stopping; ask again in a moment"))
        await self._turns_end(LEAVE_SECONDS)

    async def close(self) -> None:
        """Stop the turns under way; what they had said is kept."""
        await self.people.close()
        await self.drain(0)

    async def _turns_end(self, seconds: float) -> None:
        if self._turns:
            await asyncio.wait(list(self._turns), timeout=seconds)

    @property
    def in_flight(self) -> int:
        """Turns under way."""
        return len(self._turns)

    def seen(self, name: str) -> int:
        """Offset up to which an arbiter must be to know this conversation or inference; 0: any."""
        return self._offsets.get(name, 0)

    # --- asking ----------------------------------------------------------------------------

    async def chat(
        self,
        caller: Caller,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        *,
        model: str,
    ) -> Turn:
        """Answer a stateless client who sends the whole transcript; the last message is new."""
        *before, last = messages
        known = await self.people.known(caller.tenant, caller.user)
        continues = self.threads.find(caller.tenant, caller.user, before)
        conversation = continues or self._ids.new()
        routed = await self._rollout.route(model, caller.user, conversation)
        prepared = self._prepare(caller, messages, sampling, routed, known)
        received = MessageReceived(
            conversation=conversation,
            message=self._ids.new(),
            content=last.content,
            context=() if continues else tuple(before),
        )
        return self._begin(caller, received, prepared, routed, transcript=messages)

    async def reason(
        self,
        caller: Caller,
        message: str,
        sampling: Sampling,
        *,
        conversation: str | None,
        model: str = "soma",
    ) -> Turn:
        """Answer in a conversation that SOMA keeps; once it is too long, by its newest turns.

        Raises:
            NotFoundError: the user has no such conversation.
        """
        before = await self._history(caller, conversation) if conversation else []
        known = await self.people.known(caller.tenant, caller.user)
        conversation = conversation or self._ids.new()
        routed = await self._rollout.route(model, caller.user, conversation)
        asked = ChatMessage(role="user", content=message)
        read = self._specialist.newest(before, asked, sampling, known)
        prepared = self._prepare(caller, [*read, asked], sampling, routed, known)
        received = MessageReceived(
            conversation=conversation, message=self._ids.new(), content=message
        )
        turn = self._begin(caller, received, prepared, routed, transcript=[*before, asked])
        turn.left_out = len(before) - len(read)
        return turn

    async def complete(self, caller: Caller, text: str, sampling: Sampling, *, model: str) -> Turn:
        """Go on with a bare text."""
        conversation = self._ids.new()
        routed = await self._rollout.route(model, caller.user, conversation)
        prepared = self._specialist.continuation(
            text, sampling, adapter=routed.adapter, tenant=caller.account
        )
        received = MessageReceived(
            conversation=conversation, message=self._ids.new(), content=text, trust="external"
        )
        return self._begin(caller, received, prepared, routed, transcript=None)

    # --- the steps -------------------------------------------------------------------------

    async def _history(self, caller: Caller, conversation: str) -> list[ChatMessage]:
        stored = await self._directory.ask(
            "conversation_history",
            "history",
            at_least=self.seen(conversation),
            tenant=caller.tenant,
            user=caller.user,
            conversation=conversation,
            limit=HISTORY,
        )
        if not stored:
            raise NotFoundError(
                f"there is no conversation {conversation!r}; leave it out to begin one"
            )
        return [ChatMessage(role=m.role, content=m.content) for m in stored]

    def _prepare(
        self,
        caller: Caller,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        routed: Routed,
        known: Known,
    ) -> Prepared:
        return self._specialist.chat(
            messages, sampling, adapter=routed.adapter, known=known, tenant=caller.account
        )

    def _begin(
        self,
        caller: Caller,
        received: MessageReceived,
        prepared: Prepared,
        routed: Routed,
        *,
        transcript: Sequence[ChatMessage] | None,
    ) -> Turn:
        """Let the reply begin while the message is being kept.

        Raises:
            UnavailableError: SOMA is being stopped.
        """
        if self._stopping:
            raise UnavailableError("SOMA is stopping; ask again in a moment")
        self.threads.forget(received.conversation)
        cause = self._publisher.wrap(received, tenant=caller.tenant, user=caller.user)
        placed = Placed(
            inference=self._ids.new(),
            conversation=received.conversation,
            message=received.message,
            version=routed.version,
            specialist=self._specialist.name,
            experiment=routed.experiment,
        )
        turn = Turn(
            placed,
            prepared,
            engine=self._engine,
            publisher=self._publisher,
            cause=cause,
            kept=asyncio.create_task(self._keep(cause)),
        )
        task = asyncio.create_task(self._finish(turn, caller, transcript))
        self._turns[task] = turn
        task.add_done_callback(self._turns.pop)
        return turn

    async def _keep(self, received: Envelope) -> None:
        (offset,) = await self._publisher.publish_all([received])
        self.note(received.key, offset)

    async def _finish(
        self, turn: Turn, caller: Caller, transcript: Sequence[ChatMessage] | None
    ) -> None:
        ended = await turn.run()
        if ended is None:
            return
        for name in (turn.placed.conversation, turn.placed.inference):
            self.note(name, ended.offset)
        if transcript is not None:
            reply = ChatMessage(role="assistant", content=turn.text)
            self.threads.put(
                caller.tenant, caller.user, turn.placed.conversation, [*transcript, reply]
            )

    def note(self, name: str, offset: int) -> None:
        """Remember that whoever is asked about this must have seen this offset."""
        self._offsets[name] = offset
        self._offsets.move_to_end(name)
        while len(self._offsets) > REMEMBERED:
            self._offsets.popitem(last=False)
