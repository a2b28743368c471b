"""An engine that has shown that it can speak."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Protocol

import torch

from arbiters.errors import BusyError, UnavailableError
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel, load_model
from soma_agents.language.requests import Finished, GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.settings import Settings

SPEAK_SECONDS = 30.0


class Speaker(Protocol):
    """The part of an engine that is needed to hear it."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Piece | Finished]:
        """See `Engine.generate`."""
        ...


async def started_engine(
    settings: Settings, source: str = "", *, slots: int = 0
) -> tuple[LanguageModel, Engine]:
    """The model of the settings, or another, in an engine that has given a token."""
    chosen = settings.engine
    dtype = torch.bfloat16 if chosen.dtype == "bfloat16" else torch.float32
    model = await asyncio.to_thread(load_model, source or chosen.model, dtype=dtype)
    threads = chosen.threads or len(os.sched_getaffinity(0))
    waiting = settings.server.max_waiting
    engine = Engine(model, slots=slots or chosen.slots, threads=threads, waiting=waiting)
    await asyncio.to_thread(engine.start)
    try:
        await speak(engine, model)
    except BaseException:
        await engine.close()
        raise
    return model, engine


async def speak(engine: Speaker, model: LanguageModel) -> None:
    """Generate one token. An engine that is full of work has shown that it speaks.

    Raises:
        UnavailableError: none came in time, or the engine failed.
    """
    prompt = tuple(model.tokenizer.encode("Hello"))
    request = GenerationRequest(prompt, Sampling(temperature=0.0, max_tokens=1))
    try:
        async with asyncio.timeout(SPEAK_SECONDS):
            async for item in engine.generate(request):
                if isinstance(item, Finished) and item.reason in {"stop", "length"}:
                    return
    except BusyError:
        return
    except TimeoutError:
        raise UnavailableError(f"the engine gave no token in {SPEAK_SECONDS:g} s") from None
    raise UnavailableError("the engine broke off its test")
