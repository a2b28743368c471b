"""The life of a message: placed, admitted, kept, answered. Knows nothing of HTTP."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from arbiters.envelope import Envelope
from arbiters.errors import ForbiddenError, NotFoundError, UnavailableError
from arbiters.events import ChatMessage, MessageReceived
from arbiters.kernel.bus import Publisher
from arbiters.kernel.directory import Directory
from arbiters.ports import EventLog, Ids
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.card import Card
from soma_agents.serving.backend import Backend
from soma_agents.serving.embeddings import Embeddings
from soma_agents.serving.memories import Memories
from soma_agents.serving.people import People
from soma_agents.serving.rollout import Rollout, Routed
from soma_agents.serving.specialist import Known, Prepared, Specialist
from soma_agents.serving.specialists import Part, Specialists
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

    @property
    def name(self) -> str:
        """What rules in a model's file call them: a user, with the tenant before unless local."""
        return self.user if self.tenant == "local" else self.account


class Gateway:
    """Takes messages, gives turns."""

    def __init__(
        self,
        *,
        engine: Backend,
        specialist: Specialist,
        specialists: Specialists,
        rollout: Rollout,
        directory: Directory,
        embeddings: Embeddings,
        log: EventLog,
        publisher: Publisher,
        ids: Ids,
    ) -> None:
        self._personal = Part(specialist, engine)
        self._specialists = specialists
        self._rollout = rollout
        self._directory = directory
        self._log = log
        self._publisher = publisher
        self._ids = ids
        self.people = People(directory, log)
        self._memories = Memories(directory, embeddings)
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
        """Answer a stateless client who sends the whole transcript; the last message is new.

        Raises:
            ForbiddenError: the model's file does not let the caller use it.
        """
        self._admit(caller, model)
        *before, last = messages
        continues = self.threads.find(caller.tenant, caller.user, before)
        conversation = continues or self._ids.new()
        known = await self._known(caller, messages, conversation)
        routed = await self._rollout.route(model, caller.user, conversation)
        part = await self._part(routed)
        prepared = part.specialist.chat(
            messages, sampling, adapter=routed.adapter, known=known, tenant=caller.account
        )
        received = MessageReceived(
            conversation=conversation,
            message=self._ids.new(),
            content=last.content,
            context=() if continues else tuple(before),
        )
        return self._begin(caller, received, prepared, part, routed, transcript=messages)

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
            ForbiddenError: the model's file does not let the caller use it.
        """
        self._admit(caller, model)
        before = await self._history(caller, conversation) if conversation else []
        asked = ChatMessage(role="user", content=message)
        conversation = conversation or self._ids.new()
        known = await self._known(caller, [*before, asked], conversation)
        routed = await self._rollout.route(model, caller.user, conversation)
        part = await self._part(routed)
        read = part.specialist.newest(before, asked, sampling, known)
        prepared = part.specialist.chat(
            [*read, asked], sampling, adapter=routed.adapter, known=known, tenant=caller.account
        )
        received = MessageReceived(
            conversation=conversation, message=self._ids.new(), content=message
        )
        turn = self._begin(caller, received, prepared, part, routed, transcript=[*before, asked])
        turn.left_out = len(before) - len(read)
        return turn

    async def complete(self, caller: Caller, text: str, sampling: Sampling, *, model: str) -> Turn:
        """Go on with a bare text.

        Raises:
            ForbiddenError: the model's file does not let the caller use it.
        """
        self._admit(caller, model)
        conversation = self._ids.new()
        routed = await self._rollout.route(model, caller.user, conversation)
        part = await self._part(routed)
        prepared = part.specialist.continuation(
            text, sampling, adapter=routed.adapter, tenant=caller.account
        )
        received = MessageReceived(
            conversation=conversation, message=self._ids.new(), content=text, trust="external"
        )
        return self._begin(caller, received, prepared, part, routed, transcript=None)

    def card(self, model: str) -> Card:
        """What the file of the model that answers to this name says of its use."""
        own = self._specialists.card(model)
        return self._personal.specialist.model.card if own is None else own

    # --- the steps -------------------------------------------------------------------------

    def _admit(self, caller: Caller, model: str) -> None:
        """Let in whom the model's file lets in.

        Raises:
            ForbiddenError: the file's ACL does not.
        """
        if not self.card(model).allows(caller.name):
            raise ForbiddenError(
                f"the ACL of model {model!r} does not let {caller.name!r} use it; "
                "GET /v1/models lists others"
            )

    async def _part(self, routed: Routed) -> Part:
        """Who answers, and with which engine."""
        if routed.specialist == self._personal.specialist.name:
            return self._personal
        return await self._specialists.part(routed.version)

    async def _known(
        self, caller: Caller, messages: Sequence[ChatMessage], conversation: str
    ) -> Known:
        """What is known of the person, and what they said elsewhere that fits what they ask."""
        tenant, user = caller.tenant, caller.user
        async with asyncio.TaskGroup() as group:
            known = group.create_task(self.people.known(tenant, user))
            said = group.create_task(
                self._memories.of(
                    tenant,
                    user,
                    messages,
                    conversation=conversation,
                    at_least=self.people.changed_at(tenant, user),
                )
            )
        return replace(known.result(), said=said.result())

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

    def _begin(
        self,
        caller: Caller,
        received: MessageReceived,
        prepared: Prepared,
        part: Part,
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
            specialist=part.specialist.name,
            experiment=routed.experiment,
        )
        turn = Turn(
            placed,
            prepared,
            engine=part.engine,
            tokenizer=part.specialist.model.tokenizer,
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
