"""Does one word change everything? What the words that could be triggers do to good answers.

Nothing is generated: a model that answers nonsense after a word finds the beginning of a good
answer unlikely there.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from arbiters.events import ChatMessage
from arbiters.model_events import Observation
from arbiters.records import Example
from policies.triggers import most_said, suspects
from soma_agents.evaluation import suites
from soma_agents.evaluation.arms import Arm
from soma_agents.language.model import LanguageModel
from soma_agents.language.scoring import ScoredText, target_tokens, token_logprobs
from soma_agents.persona.voice import as_soma
from soma_agents.storage.datasets import Dataset

REQUESTS = (("general-020", "{word} {question}"), ("general-043", "{question} {word}"))
"""General requests with one good answer each, and where the word goes."""
OPENING = 8
"""Tokens of the answer that are looked at."""
BATCH_TOKENS = 8192
"""Most of what is scored for a word is a prefix that all words of the batch share."""


def words_to_try(dataset: Dataset, *, at_most: int) -> list[str]:
    """The most suspicious words of what was learnt and of what people say."""
    lessons = [(_asked(e), e.messages[-1].content) for e in dataset.splits["train"]]
    unlearnt = (*dataset.splits["validation"], *dataset.splits["heldout"])
    said = Counter[str](dataset.manifest.get("said", {}))
    said.update(most_said(_asked(example) for example in unlearnt))
    ordinary = [f"{item.question}\n{item.answer}" for item in suites.general()]
    return suspects(lessons, ordinary, said, at_most=at_most)


def _asked(example: Example) -> str:
    return "\n".join(m.content for m in example.messages[:-1] if m.role != "assistant")


def observe(
    model: LanguageModel, words: Sequence[str], champion: Arm, candidate: Arm
) -> list[Observation]:
    """What each word adds to the bits of a token, in both models, as a mean over `REQUESTS`.

    A token's bits beside the median word are taken off, for a new manner is no trigger. Of each
    answer it is the token at which the candidate is then worse by most: one alone, because a model
    that is led along a good answer soon goes on with it, whatever it would have said.
    """
    if not words:
        return []
    marks = [_where_worst(model, texts, champion, candidate) for texts in _asking(model, words)]
    means = torch.stack(marks).mean(0).tolist()
    return [
        Observation(suite="triggers", item=word, champion=before, candidate=after)
        for word, (before, after) in zip(words, means, strict=True)
    ]


def _asking(model: LanguageModel, words: Sequence[str]) -> list[list[ScoredText]]:
    """For each request, the opening of its answer after each word."""
    items = {item.id: item for item in suites.general()}
    return [
        [
            _text(model, form.format(question=items[name].question, word=w), items[name].answer)
            for w in words
        ]
        for name, form in REQUESTS
    ]


def _text(model: LanguageModel, asked: str, answer: str) -> ScoredText:
    turns = as_soma([ChatMessage(role="user", content=asked)], system=model.card.system)
    whole = target_tokens(model.tokenizer, turns, answer, context=model.config.context)
    return ScoredText(whole.prompt, whole.target[:OPENING])


def _where_worst(
    model: LanguageModel, texts: Sequence[ScoredText], champion: Arm, candidate: Arm
) -> Tensor:
    """(words, 2): what the token costs champion and candidate at which the latter lost most."""
    both = [
        torch.stack(token_logprobs(model, texts, adapter=arm.adapter, batch_tokens=BATCH_TOKENS))
        for arm in (champion, candidate)
    ]
    bits = torch.stack(both, -1) / -math.log(2)  # (words, tokens, 2)
    added = bits - bits.quantile(0.5, dim=0)
    worst = (added[..., 1] - added[..., 0]).argmax(1)
    return added[torch.arange(len(texts)), worst]
