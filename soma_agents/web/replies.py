"""How a turn looks in an answer."""

from collections.abc import Sequence
from typing import Any

from soma_agents.language.requests import Piece
from soma_agents.language.tokenizer import ChatTokenizer
from soma_agents.serving.turns import Ended, Turn


def ids(turn: Turn) -> dict[str, str]:
    """What every answer carries."""
    return {"soma_inference": turn.placed.inference, "soma_conversation": turn.placed.conversation}


def headers(turn: Turn) -> dict[str, str]:
    """The same for clients that hide the body."""
    return {
        "X-Soma-Inference": turn.placed.inference,
        "X-Soma-Conversation": turn.placed.conversation,
        "X-Soma-Model": turn.placed.version.name,
    }


def usage(ended: Ended) -> dict[str, int]:
    """Token counts in OpenAI's shape."""
    prompt, completion = ended.timings.prompt_tokens, ended.timings.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def chat_logprobs(pieces: Sequence[Piece], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Log-probabilities in the shape of `/v1/chat/completions`."""
    content = [
        _token(tokenizer, one.token, one.logprob)
        | {"top_logprobs": [_token(tokenizer, token, value) for token, value in one.top]}
        for piece in pieces
        for one in piece.logprobs
    ]
    return {"content": content, "refusal": None}


def _token(tokenizer: ChatTokenizer, token: int, logprob: float) -> dict[str, Any]:
    said = tokenizer.token_bytes(token)
    return {"token": said.decode(errors="replace"), "logprob": logprob, "bytes": list(said)}


def completion_logprobs(pieces: Sequence[Piece], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Log-probabilities in the shape of `/v1/completions`."""
    tokens = [one for piece in pieces for one in piece.logprobs]
    texts = [tokenizer.decode([one.token]) for one in tokens]
    places = [0]
    for text in texts:
        places.append(places[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [
            {tokenizer.decode([token]): value for token, value in one.top} for one in tokens
        ],
        "text_offset": places[:-1],
    }
