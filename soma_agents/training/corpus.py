"""From a dataset's conversations to the micro-batches of every optimiser step.

The plan of a run is a function of the material, the settings and the seed alone: a resumed run
skips to its step, and every worker of a parallel run makes the same plan and takes its share.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from arbiters.errors import InvalidError
from arbiters.events import ChatMessage
from arbiters.records import Example
from soma_agents.language.prefix import worthwhile_prefix
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.settings import TrainingSettings

MICRO_TOKENS = 512
"""Padded tokens of a micro-batch: enough for full speed, little enough for small activations."""

REHEARSAL_STRIDE = 3
"""Rehearsal compares whole distributions, which is dear: at every third token it is enough."""

MIN_PROMPT = 8
"""Tokens of the context that a long reply leaves to its prompt."""

Kind = Literal["reply", "rehearsal", "preference"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation as token ids; those from `target` on are the reply and its end of turn."""

    tokens: tuple[int, ...]
    target: int

    @property
    def targets(self) -> int:
        """How many tokens the loss sees."""
        return len(self.tokens) - self.target


@dataclass(frozen=True, slots=True)
class Pair:
    """The better and the worse reply to the same conversation."""

    chosen: Sample
    rejected: Sample


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a run learns from, and what it is validated on."""

    replies: tuple[Sample, ...]
    preferences: tuple[Pair, ...] = ()
    rehearsal: tuple[Sample, ...] = ()
    validation: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples of one kind that go through the model together; preferences as chosen, rejected."""

    kind: Kind
    samples: tuple[Sample, ...]

    @property
    def tokens(self) -> int:
        """Tokens with padding."""
        return len(self.samples) * max(len(sample.tokens) for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimiser step sees, on all workers together."""

    batches: tuple[MicroBatch, ...]
    counts: dict[Kind, int] = field(default_factory=dict[Kind, int])
    """What each kind's loss is a mean over: target tokens, or pairs of a preference."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(len(sample.tokens) for batch in self.batches for sample in batch.samples)


@dataclass(frozen=True, slots=True)
class Padded:
    """A micro-batch as tensors.

    `tokens` is (B, T), right-padded; all rows share the first `prefix` tokens. `rows` and
    `columns` (N,) say where, behind the prefix, the hidden states are that predict `targets` (N,).
    """

    tokens: Tensor
    prefix: int
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Padded":
        """The same in a device's memory."""
        return Padded(
            self.tokens.to(device),
            self.prefix,
            self.rows.to(device),
            self.columns.to(device),
            self.targets.to(device),
        )


def sample_of(
    tokenizer: ChatTokenizer, messages: Sequence[ChatMessage], reply: str, *, context: int
) -> Sample:
    """Tokenise a conversation and the reply to it, as `language.scoring` does.

    What is too long for `context` tokens loses its oldest turns (never the system prompt), then
    its oldest tokens; a reply that fills the context by itself loses its end.

    Raises:
        InvalidError: the reply has nothing in it.
    """
    if not reply.strip():
        raise InvalidError(f"the reply {reply!r} to learn is empty; leave the example out")
    target = [*tokenizer.encode(tokenizer.defuse(reply)), tokenizer.eos_ids[0]]
    target = target[: context - MIN_PROMPT]
    room = context - len(target)
    prompt: list[int] = []
    for turns in _shorter_and_shorter(messages):
        prompt = tokenizer.encode(tokenizer.render(turns, add_generation_prompt=True))
        if len(prompt) <= room:
            break
    prompt = prompt[-room:]
    return Sample(tuple(prompt + target), len(prompt))


def _shorter_and_shorter(messages: Sequence[ChatMessage]) -> Iterator[Sequence[ChatMessage]]:
    """The conversation whole, then from each later turn of the user on."""
    yield messages
    system = [message for message in messages[:1] if message.role == "system"]
    for start in range(len(system) + 1, len(messages)):
        if messages[start].role == "user":
            yield [*system, *messages[start:]]


def samples_of(
    tokenizer: ChatTokenizer, examples: Iterable[Example], *, context: int
) -> tuple[Sample, ...]:
    """Tokenise the examples that are replies to learn."""
    return tuple(
        sample_of(tokenizer, e.messages[:-1], e.messages[-1].content, context=context)
        for e in examples
        if e.rejected is None
    )


def pairs_of(
    tokenizer: ChatTokenizer, examples: Iterable[Example], *, context: int
) -> tuple[Pair, ...]:
    """Tokenise the examples that are preferences."""
    return tuple(
        Pair(
            chosen=sample_of(tokenizer, e.messages[:-1], e.messages[-1].content, context=context),
            rejected=sample_of(tokenizer, e.messages[:-1], e.rejected, context=context),
        )
        for e in examples
        if e.rejected is not None
    )


# --- the plan ------------------------------------------------------------------------------


def plan(corpus: Corpus, settings: TrainingSettings) -> list[Step]:
    """Every optimiser step of a run, in order; the same for the same corpus, settings and seed.

    A step holds about `batch_tokens` tokens, of which `rehearsal_share` is rehearsal.

    Raises:
        InvalidError: there is nothing to learn.
    """
    if not corpus.replies and not corpus.preferences:
        raise InvalidError("the dataset has no reply and no preference to learn from")
    share = settings.rehearsal_share if corpus.rehearsal else 0.0
    room = max(1, round(settings.batch_tokens * (1 - share)))
    rehearsed = _endless(corpus.rehearsal, settings.seed)
    steps: list[Step] = []
    for epoch in range(settings.epochs):
        for items in _groups(_shuffled(corpus, settings.seed, epoch), room):
            wanted = sum(map(_length, items)) * share / (1 - share)
            steps.append(_step(items, _take(rehearsed, wanted)))
    return steps[: settings.max_steps]


def _shuffled(corpus: Corpus, seed: int, epoch: int) -> list[Sample | Pair]:
    items: list[Sample | Pair] = [*corpus.replies, *corpus.preferences]
    random.Random(f"{seed}/{epoch}").shuffle(items)  # noqa: S311
    return items


def _groups(items: Sequence[Sample | Pair], room: int) -> Iterator[list[Sample | Pair]]:
    """Cut the items into runs of nearly equal length in tokens, each about `room`."""
    total = sum(map(_length, items))
    runs = max(1, round(total / room))
    cut = 0
    group: list[Sample | Pair] = []
    seen = 0
    for item in items:
        group.append(item)
        seen += _length(item)
        if seen >= total * (cut + 1) / runs:
            yield group
            group = []
            cut += 1
    if group:
        yield group


def _length(item: Sample | Pair) -> int:
    if isinstance(item, Pair):
        return len(item.chosen.tokens) + len(item.rejected.tokens)
    return len(item.tokens)


def _endless(samples: Sequence[Sample], seed: int) -> Iterator[Sample]:
    lap = 0
    while samples:
        order = list(samples)
        random.Random(f"{seed}/rehearsal/{lap}").shuffle(order)  # noqa: S311
        yield from order
        lap += 1


def _take(samples: Iterator[Sample], tokens: float) -> list[Sample]:
    taken: list[Sample] = []
    while tokens > 0 and (sample := next(samples, None)) is not None:
        taken.append(sample)
        tokens -= len(sample.tokens)
    return taken


def _step(items: Sequence[Sample | Pair], rehearsal: Sequence[Sample]) -> Step:
    replies = [item for item in items if isinstance(item, Sample)]
    pairs = [item for item in items if isinstance(item, Pair)]
    batches = [
        *micro_batches("reply", [(sample,) for sample in replies]),
        *micro_batches("preference", [(pair.chosen, pair.rejected) for pair in pairs]),
        *micro_batches("rehearsal", [(sample,) for sample in rehearsal]),
    ]
    counts: dict[Kind, int] = {
        "reply": sum(sample.targets for sample in replies),
        "preference": len(pairs),
        "rehearsal": sum(-(-sample.targets // REHEARSAL_STRIDE) for sample in rehearsal),
    }
    # Longest first, so that workers who take every n-th get about as much each.
    batches.sort(key=lambda batch: batch.tokens, reverse=True)
    return Step(tuple(batches), counts)


def micro_batches(
    kind: Kind, units: Sequence[tuple[Sample, ...]], *, tokens: int = MICRO_TOKENS
) -> list[MicroBatch]:
    """Put units of like length together; a unit is never split.

    A micro-batch takes up to `tokens`: with padding, what all units share counted once.
    """

    def longest(unit: tuple[Sample, ...]) -> int:
        return max(len(sample.tokens) for sample in unit)

    ordered = sorted(units, key=longest)
    samples = [sample for unit in units for sample in unit]
    shared = _prefix(samples) if samples else 0
    cuts = [0]
    for i, unit in enumerate(ordered):
        rows = (i + 1 - cuts[-1]) * len(unit)
        if i > cuts[-1] and shared + rows * (longest(unit) - shared) > tokens:
            cuts.append(i)
    cuts.append(len(ordered))
    return [
        MicroBatch(kind, tuple(sample for unit in ordered[start:end] for sample in unit))
        for start, end in pairwise(cuts)
        if end > start
    ]


def _prefix(samples: Sequence[Sample]) -> int:
    prompts = [sample.tokens[: sample.target] for sample in samples]
    return worthwhile_prefix(prompts, at_most=min(map(len, prompts)) - 1)


def padded(samples: Sequence[Sample], *, stride: int = 1) -> Padded:
    """Samples as tensors, each `stride`-th target of a sample a target.

    The padding (token 0) comes after every target and is never seen.
    """
    width = max(len(sample.tokens) for sample in samples)
    prefix = _prefix(samples)
    tokens = torch.zeros(len(samples), width, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
        places = range(sample.target, len(sample.tokens), stride)
        rows += [row] * len(places)
        columns += [place - 1 - prefix for place in places]
        targets += [sample.tokens[place] for place in places]
    return Padded(tokens, prefix, torch.tensor(rows), torch.tensor(columns), torch.tensor(targets))
