"""How surprised a model is by a given reply, teacher forced, in bits per UTF-8 byte."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from arbiters.errors import InvalidError
from soma_agents.language.model import LanguageModel
from soma_agents.language.prefix import hidden_behind_prefix, worthwhile_prefix
from soma_agents.language.tokenizer import ChatTokenizer, Message
from soma_agents.language.transformer import Lora


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Token ids of a prompt and of the reply that follows, its end token included."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


def target_tokens(
    tokenizer: ChatTokenizer, prompt: Sequence[Message], reply: str, *, context: int
) -> ScoredText:
    """The rendered prompt and the reply as token ids; the prompt's oldest tokens give way.

    Raises:
        InvalidError: the reply alone does not fit into `context` tokens.
    """
    rendered = tokenizer.encode(tokenizer.render(prompt, add_generation_prompt=True))
    target = (*tokenizer.encode(tokenizer.defuse(reply)), tokenizer.eos_ids[0])
    room = context - len(target)
    if room < 1:
        raise InvalidError(f"a reply of {len(target)!r} tokens exceeds the context of {context!r}")
    return ScoredText(tuple(rendered[-room:]), target)


def bits_per_byte(
    model: LanguageModel,
    items: Sequence[tuple[Sequence[Message], str]],
    *,
    adapter: Lora | None = None,
    batch_tokens: int = 4096,
) -> list[float]:
    """Bits per byte of each item's reply after its prompt messages; lower is better.

    Raises:
        InvalidError: a reply exceeds the model's context.
    """
    texts = [
        target_tokens(model.tokenizer, prompt, reply, context=model.config.context)
        for prompt, reply in items
    ]
    logprobs = target_logprob(model, texts, adapter=adapter, batch_tokens=batch_tokens)
    return [
        -logprob / math.log(2) / max(1, len(reply.encode()))
        for logprob, (_, reply) in zip(logprobs, items, strict=True)
    ]


def target_logprob(
    model: LanguageModel,
    texts: Sequence[ScoredText],
    *,
    adapter: Lora | None = None,
    batch_tokens: int = 4096,
) -> list[float]:
    """Natural logarithm of the probability of each text's target after its prompt.

    NaN stands for a model whose logits are broken.
    """
    found = token_logprobs(model, texts, adapter=adapter, batch_tokens=batch_tokens)
    return [logprobs.sum().item() for logprobs in found]


def token_logprobs(
    model: LanguageModel,
    texts: Sequence[ScoredText],
    *,
    adapter: Lora | None = None,
    batch_tokens: int = 4096,
) -> list[Tensor]:
    """The same of each token of a text's target by itself: (T,) in float64 for each text.

    Texts of like length go together, at most `batch_tokens` padded tokens a forward pass.
    """
    scores = [torch.empty(0)] * len(texts)
    with torch.inference_mode():
        for batch in _batches(texts, batch_tokens):
            found = _score([texts[i] for i in batch], model, adapter)
            for place, score in zip(batch, found, strict=True):
                scores[place] = score
    return scores


def _batches(texts: Sequence[ScoredText], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    longest = 0
    for place in sorted(range(len(texts)), key=lambda i: -_length(texts[i])):
        longest = longest or _length(texts[place])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], _length(texts[place])
        batch.append(place)
    if batch:
        yield batch


def _length(text: ScoredText) -> int:
    return len(text.prompt) + len(text.target)


def _score(texts: Sequence[ScoredText], model: LanguageModel, lora: Lora | None) -> list[Tensor]:
    tokens = torch.zeros(len(texts), max(map(_length, texts)), dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : _length(text)] = torch.tensor(text.prompt + text.target)
    # The last prompt token's own output predicts the first target token.
    room = min(len(text.prompt) for text in texts) - 1
    prefix = worthwhile_prefix([text.prompt for text in texts], at_most=room)
    hidden = hidden_behind_prefix(model.transformer, tokens, prefix, lora=lora)
    return [_one(hidden[row], text, model, prefix) for row, text in enumerate(texts)]


def _one(hidden: Tensor, text: ScoredText, model: LanguageModel, prefix: int) -> Tensor:
    start = len(text.prompt) - 1 - prefix
    logits = model.transformer.head(hidden[start : start + len(text.target)]).float()
    losses = F.cross_entropy(logits, torch.tensor(text.target), reduction="none")
    return -losses.double()
