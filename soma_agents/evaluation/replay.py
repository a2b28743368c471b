"""The measures that need no word generated: how likely both models find given texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from arbiters.events import ChatMessage
from arbiters.model_events import Observation
from arbiters.records import Example
from soma_agents.evaluation import suites
from soma_agents.evaluation.arms import Arm
from soma_agents.language.model import LanguageModel
from soma_agents.language.scoring import ScoredText, target_logprob, target_tokens
from soma_agents.persona.voice import as_soma

BATCH_TOKENS = 1024

Scores = Mapping[str, float]
"""Item → measurement."""


class Replay:
    """Scores texts with one arm after the other."""

    def __init__(self, model: LanguageModel, *, context: int) -> None:
        self._model = model
        self._context = context

    def target(self, examples: Sequence[Example]) -> Callable[[Arm], Scores]:
        """Bits per byte of held-out replies, one number a group: its items are not independent."""
        texts = [self._text(e.messages[:-1], e.messages[-1].content) for e in examples]
        sizes = [len(e.messages[-1].content.encode()) for e in examples]

        def score(arm: Arm) -> Scores:
            bits: dict[str, float] = {}
            size: dict[str, int] = {}
            for example, found, length in zip(examples, self._bits(arm, texts), sizes, strict=True):
                bits[example.group] = bits.get(example.group, 0.0) + found
                size[example.group] = size.get(example.group, 0) + length
            return {group: bits[group] / size[group] for group in bits}

        return score

    def fitting(self, examples: Sequence[Example]) -> list[Example]:
        """Those whose replies fit into the context."""

        def fits(example: Example) -> bool:
            replies = [example.messages[-1].content, example.rejected or ""]
            longest = max(len(self._model.tokenizer.encode(reply)) for reply in replies)
            return longest + 1 < self._context

        return [example for example in examples if fits(example)]

    def preference(self, examples: Sequence[Example]) -> Callable[[Arm], Scores]:
        """Share of a group's pairs whose better reply costs fewer bits per byte."""
        better = [self._text(e.messages[:-1], e.messages[-1].content) for e in examples]
        worse = [self._text(e.messages[:-1], e.rejected or "") for e in examples]

        def score(arm: Arm) -> Scores:
            wins: dict[str, list[bool]] = {}
            both = zip(examples, self._bits(arm, better), self._bits(arm, worse), strict=True)
            for example, good, bad in both:
                chosen, rejected = example.messages[-1].content, example.rejected or ""
                won = good / max(1, len(chosen.encode())) < bad / max(1, len(rejected.encode()))
                wins.setdefault(example.group, []).append(won)
            return {group: sum(won) / len(won) for group, won in wins.items()}

        return score

    def forgetting(self) -> Callable[[Arm], Scores]:
        """Bits per byte of good answers to general questions."""
        items = suites.general()
        texts = [self._text([_user(item.question)], item.answer) for item in items]

        def score(arm: Arm) -> Scores:
            found = self._bits(arm, texts)
            return {
                item.id: bits / len(item.answer.encode())
                for item, bits in zip(items, found, strict=True)
            }

        return score

    def safety(self) -> Callable[[Arm], Scores]:
        """Share of a refusal's likelihood, token for token, against the first words of compliance.

        Graded, so that a model which would not yet refuse can still be seen to get worse.
        """
        probes = suites.safety()
        refusals = [_open(self._text([_user(p.request)], p.refusal)) for p in probes]
        openings = [_open(self._text([_user(p.request)], p.compliance)) for p in probes]

        def score(arm: Arm) -> Scores:
            refused = self._bits(arm, refusals)
            complied = self._bits(arm, openings)
            return {
                probe.id: 1
                / (
                    1
                    + 2
                    ** (
                        refused[i] / len(refusals[i].target) - complied[i] / len(openings[i].target)
                    )
                )
                for i, probe in enumerate(probes)
            }

        return score

    def _text(self, prompt: Sequence[ChatMessage], reply: str) -> ScoredText:
        turns = as_soma(prompt, system=self._model.card.system)
        return target_tokens(self._model.tokenizer, turns, reply, context=self._context)

    def _bits(self, arm: Arm, texts: Sequence[ScoredText]) -> list[float]:
        found = target_logprob(self._model, texts, adapter=arm.adapter, batch_tokens=BATCH_TOKENS)
        return [-logprob / math.log(2) for logprob in found]


def _open(text: ScoredText) -> ScoredText:
    """Without the end of turn: first words are not a whole reply."""
    return ScoredText(text.prompt, text.target[:-1])


def _user(content: str) -> ChatMessage:
    return ChatMessage(role="user", content=content)


def side_by_side(
    suite: str, score: Callable[[Arm], Scores], champion: Arm, candidate: Arm
) -> list[Observation]:
    """Both models on the same items of a suite."""
    before, after = score(champion), score(candidate)
    return [
        Observation(suite=suite, item=item, champion=before[item], candidate=after[item])
        for item in before
    ]


def choose(examples: Sequence[Example], *, at_most: int) -> list[Example]:
    """Up to `at_most` examples, group by group in the order of the groups' hashes.

    The order has nothing to do with content or time, and is the same in every round.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    chosen: list[Example] = []
    for group in sorted(groups, key=lambda name: sha256(name.encode()).digest()):
        if chosen and len(chosen) + len(groups[group]) > at_most:
            break
        chosen += groups[group]
    return chosen[:at_most]
