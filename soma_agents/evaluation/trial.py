"""The measures that need words: both models answer in one engine, as they would in service."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import fmean

from arbiters.errors import CorruptError
from arbiters.events import ChatMessage
from arbiters.model_events import Observation
from arbiters.records import Example
from policies.personality import dimensions_of
from soma_agents.evaluation import suites
from soma_agents.evaluation.arms import Arm
from soma_agents.language.engine import Engine
from soma_agents.language.model import LanguageModel
from soma_agents.language.requests import Finished, GenerationRequest
from soma_agents.language.sampling import Sampling
from soma_agents.persona.measures import ComputedMeasures
from soma_agents.persona.voice import as_soma

SLOTS = 20
ANSWER_TOKENS = 40
SAMPLES = 8
LATENCY_ITEMS = 20
"""With 10, the median of the fourth candidate ever could not be told with its share of the error."""
LATENCY_TOKENS = 8


class Trial:
    """Champion and candidate, loaded in one engine."""

    def __init__(self, engine: Engine, champion: Arm, candidate: Arm) -> None:
        self._engine = engine
        self._arms = (champion, candidate)

    async def personality(self) -> list[Observation]:
        """How far each dimension moved from the champion's, over greedy answers."""
        prompts = [[_user(item.prompt)] for item in suites.persona()]
        before, after = await self._answers(prompts)
        old, new = _dimensions(before), _dimensions(after)
        return [
            Observation(suite="personality", item=name, champion=0.0, candidate=abs(new[name] - at))
            for name, at in old.items()
        ]

    async def samples(self, examples: Sequence[Example]) -> tuple[dict[str, str], ...]:
        """A few held-out prompts with both answers and the one that a person preferred."""
        chosen = examples[:SAMPLES]
        before, after = await self._answers([example.messages[:-1] for example in chosen])
        return tuple(
            {
                "prompt": "".join(message.content for message in example.messages[:-1][-1:]),
                "champion": before[i],
                "candidate": after[i],
                "reference": example.messages[-1].content,
            }
            for i, example in enumerate(chosen)
        )

    async def latency(self) -> list[Observation]:
        """Seconds a token, each alone in the engine, by turns: what disturbs one, disturbs both."""
        prompts = [self._tokens([_user(item.question)]) for item in suites.general()]
        for arm in self._arms:
            await self._pace(arm, prompts[0])  # the first time is not like the others
        observations: list[Observation] = []
        for i, prompt in enumerate(prompts[:LATENCY_ITEMS]):
            order = self._arms if i % 2 else self._arms[::-1]
            paces = {arm.id: await self._pace(arm, prompt) for arm in order}
            champion, candidate = (paces[arm.id] for arm in self._arms)
            observations.append(
                Observation(
                    suite="latency", item=f"pace-{i:02d}", champion=champion, candidate=candidate
                )
            )
        return observations

    async def _pace(self, arm: Arm, prompt: tuple[int, ...]) -> float:
        """Seconds for each token after the first."""
        sampling = Sampling(temperature=0.0, max_tokens=LATENCY_TOKENS)
        _, finished = await self._generate(arm, prompt, sampling)
        return (finished.total_s - finished.first_token_s) / max(1, finished.completion_tokens - 1)

    async def _answers(
        self, prompts: Sequence[Sequence[ChatMessage]]
    ) -> tuple[list[str], list[str]]:
        """Greedy answers of both arms to every prompt."""
        sampling = Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS)
        tokens = [self._tokens(prompt) for prompt in prompts]
        async with asyncio.TaskGroup() as group:
            tasks = [
                [group.create_task(self._generate(arm, prompt, sampling)) for prompt in tokens]
                for arm in self._arms
            ]
        before, after = ([task.result()[0] for task in arm] for arm in tasks)
        return before, after

    async def _generate(
        self, arm: Arm, prompt: tuple[int, ...], sampling: Sampling
    ) -> tuple[str, Finished]:
        adapter = None if arm.adapter is None else arm.id
        text = ""
        async for part in self._engine.generate(GenerationRequest(prompt, sampling, adapter)):
            if not isinstance(part, Finished):
                text += part.text
            elif part.reason == "error":
                raise CorruptError(f"model {arm.id!r} gives no numbers to choose a word by")
            else:
                return text, part
        raise CorruptError(f"model {arm.id!r} stopped without an end")

    def _tokens(self, prompt: Sequence[ChatMessage]) -> tuple[int, ...]:
        model = self._engine.model
        turns = as_soma(prompt, system=model.card.system)
        text = model.tokenizer.render(turns, add_generation_prompt=True)
        tokens = model.tokenizer.encode(text)
        return tuple(tokens[-(model.config.context - ANSWER_TOKENS) :])


@asynccontextmanager
async def trial(
    model: LanguageModel, champion: Arm, candidate: Arm, *, threads: int
) -> AsyncIterator[Trial]:
    """An engine with both arms, closed at the end."""
    engine = Engine(model, slots=SLOTS, threads=threads)
    engine.start()
    try:
        for arm in (champion, candidate):
            if arm.directory is not None:
                await engine.load_adapter(arm.id, arm.directory)
        yield Trial(engine, champion, candidate)
    finally:
        await engine.close()


def _dimensions(answers: Sequence[str]) -> dict[str, float]:
    """The personality that answers show together."""
    measures = ComputedMeasures()
    shown = [dimensions_of(measures.of(answer)) for answer in answers]
    return {name: fmean(one[name] for one in shown) for name in shown[0]}


def _user(content: str) -> ChatMessage:
    return ChatMessage(role="user", content=content)
