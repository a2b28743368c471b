"""What every run rehearses, so that the new does not push out the old.

`rehearsal.jsonl` holds general questions with the base model's own greedy answers
(self-distillation): training holds the model's distribution there to the base's. To harmful
requests the answers are refusals that we wrote. `python -m soma_agents.training.rehearsal` makes
the base model's answers anew.
"""

import asyncio
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from arbiters.errors import CorruptError
from arbiters.events import ChatMessage
from soma_agents.language.engine import Engine
from soma_agents.language.model import load_model
from soma_agents.language.requests import Finished, GenerationRequest
from soma_agents.language.sampling import Sampling
from soma_agents.language.source import SMOLLM2
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.persona.voice import as_soma
from soma_agents.storage.files import write_atomic
from soma_agents.training.corpus import Sample, sample_of

FILE = Path(__file__).with_suffix(".jsonl")
ANSWER_TOKENS = 80
"""Length at which the base model's answers are cut off."""

REHEARSED_TOKENS = 48
"""What of an answer is rehearsed: its beginning tells most, and time is dear."""


class Rehearsed(BaseModel):
    """A question and its answer. An answer that was cut off (not `whole`) ends no turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    answer: str
    whole: bool
    by: Literal["base", "us"]


def read_rehearsal(file: Path = FILE) -> list[Rehearsed]:
    """The questions and answers.

    Raises:
        CorruptError: names the line that cannot be read.
    """
    items: list[Rehearsed] = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            items.append(Rehearsed.model_validate_json(line))
        except ValidationError as error:
            raise CorruptError(f"{file} line {number} is no rehearsal item: {error}") from None
    return items


def rehearsal_samples(
    tokenizer: ChatTokenizer, *, context: int, system: str = ""
) -> tuple[Sample, ...]:
    """The items as token ids; `system` is the model's own system message."""
    return tuple(_sample(tokenizer, item, context, system) for item in read_rehearsal())


def _sample(tokenizer: ChatTokenizer, item: Rehearsed, context: int, system: str) -> Sample:
    messages = as_soma([ChatMessage(role="user", content=item.prompt)], system=system)
    sample = sample_of(tokenizer, messages, item.answer, context=context)
    if item.whole and sample.targets <= REHEARSED_TOKENS:
        return sample
    kept = min(REHEARSED_TOKENS, sample.targets - 1)
    return Sample(sample.tokens[: sample.target + kept], sample.target)


async def regenerate(file: Path = FILE) -> None:
    """Let the base model answer its questions again and write the file."""
    engine = Engine(load_model(SMOLLM2), slots=16)
    engine.start()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answer(engine, item)) for item in read_rehearsal(file)]
    finally:
        await engine.close()
    text = "".join(task.result().model_dump_json() + "\n" for task in tasks)
    write_atomic(file, text.encode(), mode=0o644)


async def _answer(engine: Engine, item: Rehearsed) -> Rehearsed:
    if item.by == "us":
        return item
    tokenizer = engine.model.tokenizer
    messages = as_soma([ChatMessage(role="user", content=item.prompt)])
    prompt = tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True))
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS)
    text, whole = "", False
    async for part in engine.generate(GenerationRequest(tuple(prompt), sampling)):
        if isinstance(part, Finished):
            whole = part.reason == "stop"
        else:
            text += part.text
    return item.model_copy(update={"answer": text, "whole": whole})


if __name__ == "__main__":
    asyncio.run(regenerate())
