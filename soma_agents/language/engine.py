"""The engine: many requests at once on one language model, decoded on a thread of its own."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
import torch

from arbiters.errors import BusyError, InvalidError, NotFoundError, UnavailableError
from soma_agents.language.batch import Batch
from soma_agents.language.decoder import Decoder
from soma_agents.language.lora import LoraAdapter
from soma_agents.language.mixed_lora import PackedLora
from soma_agents.language.model import LanguageModel
from soma_agents.language.reply import Reply
from soma_agents.language.requests import Finished, GenerationRequest, Piece
from soma_agents.language.sampling import Sampler
from soma_agents.language.sequence import Sequence
from soma_agents.language.threads import confine, mark_thread

T = TypeVar("T")
CACHE_TOKENS_PER_SLOT = 1024
NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine does now, and what it did since it started."""

    slots: int
    running: int
    waiting: int
    adapters: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    steps: int
    busy_s: float
    drafted_tokens: int = 0
    right_tokens: int = 0
    """Of those drafted."""


class Engine:
    """Continues prompts, many at once.

    `slots` requests are decoded together, `waiting` more may wait. `threads` 0 uses torch's
    number. `cache_tokens` bounds the keys and values held, by default 1,024 tokens a slot or one
    whole context. Replies are the same with `drafts` and without, only faster: False is for
    whoever compares.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        slots: int = 32,
        threads: int = 0,
        waiting: int = 128,
        cache_tokens: int | None = None,
        drafts: bool = True,
    ) -> None:
        self.model = model
        self._slots = slots
        self._threads = threads or torch.get_num_threads()
        self._most_waiting = waiting
        self._cache_tokens = cache_tokens or max(
            slots * CACHE_TOKENS_PER_SLOT, model.config.context
        )
        self._drafts = drafts
        self._adapters: dict[str, PackedLora] = {}
        self._name = f"decode-{next(NUMBERS)}"
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._closing = False
        self._batch: Batch | None = None
        self._letters: dict[asyncio.AbstractEventLoop, list[tuple[Sequence, Piece | Finished]]] = {}
        self._open = 0
        self._requests = 0
        self._busy_s = 0.0

    # --- from any event loop ---------------------------------------------------------------

    def start(self) -> None:
        """Make the model ready to decode and start the thread; takes a second or two."""
        self._batch = Batch(
            self.model,
            Decoder(self.model),
            slots=self._slots,
            cache_tokens=self._cache_tokens,
            deliver=self._post,
            drafts=self._drafts,
        )
        self._thread.start()

    async def close(self) -> None:
        """End running replies as cancelled and stop the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Piece | Finished]:
        """The reply, piece by piece, then how it ended. Closing the iterator cancels.

        Raises:
            InvalidError: the prompt is empty, holds unknown tokens or leaves no room to answer.
            NotFoundError: the adapter is not loaded.
            BusyError: too many requests wait already.
            UnavailableError: the engine is not running.
        """
        sequence = self._sequence(request)
        batch = self._running_batch()
        if self._open >= self._slots + self._most_waiting:
            raise BusyError(f"the engine has {self._open} requests; ask again in a moment")
        self._open += 1
        self._requests += 1
        ended = False
        try:
            self._do(lambda: batch.waiting.put(request.tenant, sequence))
            while not ended:
                item = await sequence.outbox.get()
                ended = isinstance(item, Finished)
                yield item
        finally:
            self._open -= 1
            sequence.cancelled = True  # nothing happens if it has ended

    async def load_adapter(self, adapter: str, directory: Path) -> None:
        """Read an adapter, so that requests may name it; nothing if it is loaded.

        Raises:
            NotFoundError: a file is missing.
            CorruptError: it is damaged, holds NaN, or is for another model.
            InvalidError: it is more than plain LoRA.
        """
        if adapter not in self._adapters:
            self._adapters[adapter] = await asyncio.to_thread(self._read, directory)

    async def unload_adapter(self, adapter: str) -> None:
        """Forget an adapter; replies that use it go on to their end."""
        self._adapters.pop(adapter, None)

    def adapters(self) -> frozenset[str]:
        """The adapters that requests may name."""
        return frozenset(self._adapters)

    async def use_cores(self, cores: tuple[int, ...]) -> None:
        """Compute on these cores only, one thread each, from the next step on.

        Raises:
            InvalidError: there is no such core for this process, or none is named.
        """
        self._running_batch()
        done: Future[None] = Future()
        self._do(lambda: _resolve(done, lambda: confine(self._name, cores)))
        try:
            await asyncio.wrap_future(done)
        except (OSError, RuntimeError) as error:
            raise InvalidError(f"cannot compute on cores {cores!r}: {error}") from error

    def stats(self) -> EngineStats:
        """Counts for the metrics."""
        batch = self._batch
        running = 0 if batch is None else len(batch.decoding) + len(batch.reading)
        return EngineStats(
            slots=self._slots,
            running=running,
            waiting=max(0, self._open - running),
            adapters=len(self._adapters),
            requests=self._requests,
            prompt_tokens=0 if batch is None else batch.prompt_tokens,
            completion_tokens=0 if batch is None else batch.completion_tokens,
            steps=0 if batch is None else batch.steps,
            busy_s=self._busy_s,
            drafted_tokens=0 if batch is None else batch.drafted_tokens,
            right_tokens=0 if batch is None else batch.right_tokens,
        )

    def _sequence(self, request: GenerationRequest) -> Sequence:
        context, prompt = self.model.config.context, request.prompt
        if not prompt:
            raise InvalidError("the prompt is empty; send at least one token")
        if len(prompt) >= context:
            raise InvalidError(
                f"the prompt has {len(prompt)} tokens, the context holds {context} with the "
                "answer; shorten the conversation"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.model.config.vocab_size:
            raise InvalidError(f"the prompt has tokens outside 0 … {self.model.config.vocab_size}")
        if request.adapter is not None and request.adapter not in self._adapters:
            raise NotFoundError(f"adapter {request.adapter!r} is not loaded; load it first")
        return Sequence(
            request=request,
            lora=None if request.adapter is None else self._adapters[request.adapter],
            sampler=Sampler(request.sampling, prompt),
            reply=Reply(self.model.tokenizer, request.sampling.stop),
            loop=asyncio.get_running_loop(),
            limit=min(request.sampling.max_tokens, context - len(prompt)),
        )

    def _read(self, directory: Path) -> PackedLora:
        adapter = LoraAdapter.load(directory, self.model.config)
        return PackedLora(adapter, self.model.transformer.embedding.weight.dtype)

    def _running_batch(self) -> Batch:
        if self._batch is None or self._closing or not self._thread.is_alive():
            raise UnavailableError("the engine is not running; start it")
        return self._batch

    def _do(self, work: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(work)
            self._wake.notify()

    # --- on the decoding thread ------------------------------------------------------------

    def _run(self) -> None:
        batch = self._batch
        assert batch is not None  # noqa: S101 — start() made it
        mark_thread(self._name)
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._collect(batch):
                started = time.perf_counter()
                for work in (batch.read, batch.decode):
                    self._carry_out(batch, work)
                self._busy_s += time.perf_counter() - started
            batch.abort("cancelled")
            self._send()

    def _carry_out(self, batch: Batch, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 — no request may end the thread
            structlog.get_logger().exception("decoding failed", running=len(batch.decoding))
            batch.abort("error")
        self._send()

    def _collect(self, batch: Batch) -> bool:
        """Carry out what was asked for; waits while there is nothing to do. False ends."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._closing or batch.busy)
            inbox, self._inbox = self._inbox, []
            closing = self._closing
        for work in inbox:
            work()
        return not closing

    def _post(self, sequence: Sequence, item: Piece | Finished) -> None:
        self._letters.setdefault(sequence.loop, []).append((sequence, item))

    def _send(self) -> None:
        """Hand over what a step produced, with one call for each event loop."""
        letters, self._letters = self._letters, {}
        for loop, items in letters.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:
                continue  # the loop is closed: nobody is left to read


def _deliver(items: Items[tuple[Sequence, Piece | Finished]]) -> None:
    for sequence, item in items:
        sequence.outbox.put_nowait(item)


def _resolve(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 — handed to whoever waits
        future.set_exception(error)
