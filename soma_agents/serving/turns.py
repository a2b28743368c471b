"""A turn: one reply from the first token to its event in the log, whoever listens or leaves."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

import structlog

from arbiters.envelope import Envelope
from arbiters.errors import SomaError
from arbiters.events import ReplyGiven, Timings
from arbiters.kernel.bus import Publisher
from arbiters.records import ModelVersion
from soma_agents.language.requests import Finished, Piece
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.serving.backend import Backend, generation
from soma_agents.serving.specialist import Prepared

log = structlog.get_logger(__name__)

Finish = Literal["stop", "length", "cancelled", "error"]


class GenerationError(SomaError):
    """The engine broke off; what it had said so far is not to be trusted."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Which reply it is, in which conversation, by which model."""

    inference: str
    conversation: str
    message: str
    version: ModelVersion
    specialist: str
    experiment: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a turn, sent once the reply is in the log."""

    finish: Finish
    timings: Timings
    offset: int


@dataclass(slots=True)
class _Reply:
    """What has been said so far."""

    text: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    first_token: float = 0.0


class Turn:
    """Runs in a task of its own, so that a client who leaves does not take the reply along."""

    def __init__(
        self,
        placed: Placed,
        prepared: Prepared,
        *,
        engine: Backend,
        tokenizer: ChatTokenizer,
        publisher: Publisher,
        cause: Envelope,
        kept: asyncio.Task[None],
    ) -> None:
        self.placed = placed
        self.left_out = 0
        """Messages of the conversation that were too old to be read."""
        self.tokenizer = tokenizer
        self._prepared = prepared
        self._engine = engine
        self._publisher = publisher
        self._cause = cause
        self._kept = kept
        self._items: asyncio.Queue[Piece | Ended | SomaError] = asyncio.Queue()
        self._reply = _Reply()
        self._started = time.perf_counter()
        self._left = False
        self._generation: asyncio.Task[Finished] | None = None

    # --- for whoever listens ---------------------------------------------------------------

    async def items(self) -> AsyncGenerator[Piece | Ended]:
        """Pieces as they come, then the end. Stopping early cancels the generation.

        Raises:
            BusyError, InvalidError: the engine did not take the request.
            GenerationError: it broke off.
            StorageFullError: the message or the reply could not be kept.
        """
        try:
            while True:
                item = await self._items.get()
                if isinstance(item, SomaError):
                    raise item
                yield item
                if isinstance(item, Ended):
                    return
        finally:
            self.leave()

    def leave(self) -> None:
        """The client is gone: stop generating. What was said so far is kept."""
        self._left = True
        if self._generation is not None and not self._generation.done():
            self._generation.cancel()

    def break_off(self, error: SomaError) -> None:
        """Stop generating and tell whoever listens why. What was said so far is kept."""
        self._items.put_nowait(error)
        self.leave()

    @property
    def text(self) -> str:
        """All that was said so far."""
        return "".join(self._reply.text)

    # --- the work --------------------------------------------------------------------------

    async def run(self) -> Ended | None:
        """Generate, then put the reply into the log; None when there was nothing to put."""
        try:
            try:
                finished = await self._generate()
            finally:
                await self._kept
            ended = await self._keep(finished)
        except SomaError as error:
            log.warning("reply failed", inference=self.placed.inference, error=str(error))
            self._items.put_nowait(error)
            return None
        if ended.finish == "error":
            self._items.put_nowait(GenerationError("the model broke off; ask again"))
        self._items.put_nowait(ended)
        return ended

    async def _generate(self) -> Finished:
        if self._left:
            return self._cancelled()
        self._generation = asyncio.create_task(self._pull())
        await asyncio.wait([self._generation])
        if self._generation.cancelled():
            return self._cancelled()
        return self._generation.result()

    async def _pull(self) -> Finished:
        async with generation(self._engine, self._prepared.request) as items:
            async for item in items:
                if isinstance(item, Finished):
                    return item
                if not self._reply.token_ids:
                    # Nothing is said to a message that may yet be lost.
                    await asyncio.shield(self._kept)
                    self._reply.first_token = time.perf_counter() - self._started
                self._reply.text.append(item.text)
                self._reply.token_ids.extend(item.token_ids)
                self._items.put_nowait(item)
        raise GenerationError("the engine ended without saying why; ask again")

    def _cancelled(self) -> Finished:
        return Finished(
            reason="cancelled",
            prompt_tokens=len(self._prepared.request.prompt),
            completion_tokens=len(self._reply.token_ids),
            first_token_s=self._reply.first_token,
            total_s=time.perf_counter() - self._started,
        )

    async def _keep(self, finished: Finished) -> Ended:
        timings = Timings(
            first_token=finished.first_token_s,
            total=finished.total_s,
            prompt_tokens=finished.prompt_tokens,
            completion_tokens=finished.completion_tokens,
        )
        envelope = await self._publisher.publish(
            ReplyGiven(
                conversation=self.placed.conversation,
                message=self.placed.message,
                inference=self.placed.inference,
                content=self.text,
                model=self.placed.version.id,
                specialist=self.placed.specialist,
                experiment=self.placed.experiment,
                config_hash=self._prepared.config_hash,
                finish=finished.reason,
                token_ids=tuple(self._reply.token_ids),
                timings=timings,
            ),
            cause=self._cause,
        )
        return Ended(finish=finished.reason, timings=timings, offset=envelope.offset)
