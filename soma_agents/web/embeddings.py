"""`/v1/embeddings`: texts as vectors, in OpenAI's shape. A pure function: nothing is kept, no event said."""

import base64
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from soma_agents.language.geometry.features import Floats
from soma_agents.serving.embeddings import NAME
from soma_agents.serving.rollout import ModelNotFoundError
from soma_agents.web.dependencies import Chats, Parts
from soma_agents.web.errors import ParameterError
from soma_agents.web.schemas import Body

router = APIRouter(prefix="/v1", tags=["OpenAI"])

MOST_INPUTS = 2048
MOST_CHARACTERS = 1 << 17
"""Of one input: one text is one piece of work, and others wait for it."""


class EmbeddingRequest(Body):
    """`POST /v1/embeddings`."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str = NAME
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None

    def texts(self) -> list[str]:
        """What is to be embedded.

        Raises:
            ParameterError: none, too many, an empty or too long one, or token ids.
        """
        inputs = [self.input] if isinstance(self.input, str) else self.input
        if not 0 < len(inputs) <= MOST_INPUTS:
            raise ParameterError(
                f"input has {len(inputs)} texts; send 1 to {MOST_INPUTS}", param="input"
            )
        return [self._checked(number, text) for number, text in enumerate(inputs)]

    @staticmethod
    def _checked(number: int, text: str | int | list[int]) -> str:
        if not isinstance(text, str):
            raise ParameterError(
                "input has token ids, which mean other words in every vocabulary; send text",
                param="input",
            )
        if not 0 < len(text) <= MOST_CHARACTERS:
            raise ParameterError(
                f"input.{number} has {len(text)} characters; a text has 1 to {MOST_CHARACTERS}",
                param=f"input.{number}",
            )
        return text


@router.post("/embeddings")
async def embed(body: EmbeddingRequest, services: Parts, _: Chats) -> Response:
    """A vector of length 1 for each text."""
    if body.model != NAME:
        raise ModelNotFoundError(f"there is no embedding model {body.model!r}; use {NAME!r}")
    texts, most = body.texts(), services.embeddings.dim
    if body.dimensions is not None and body.dimensions > most:
        raise ParameterError(
            f"dimensions is {body.dimensions}; {NAME} has at most {most}", param="dimensions"
        )
    content = await services.embeddings.embed(
        texts,
        dimensions=body.dimensions,
        render=lambda vectors, words: _rendered(vectors, words, body.encoding_format),
    )
    return Response(content, media_type="application/json")


def _rendered(vectors: Floats, words: int, encoding: str) -> bytes:
    """The answer's body; vector by vector, since others cannot run while one call encodes JSON."""
    data = ", ".join(
        json.dumps({"object": "embedding", "index": index, "embedding": _encoded(row, encoding)})
        for index, row in enumerate(vectors)
    )
    rest: dict[str, Any] = {"model": NAME, "usage": {"prompt_tokens": words, "total_tokens": words}}
    return f'{{"object": "list", "data": [{data}], {json.dumps(rest)[1:]}'.encode()


def _encoded(row: Floats, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return row.tolist()
