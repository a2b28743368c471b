"""`/feedback`: what people think of a reply or a conversation."""

import asyncio
import hashlib
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from arbiters.errors import NotFoundError
from arbiters.events import FeedbackGiven
from arbiters.records import StoredFeedback
from soma_agents.serving.gateway import Caller
from soma_agents.web.dependencies import Judges, Parts
from soma_agents.web.errors import ParameterError
from soma_agents.web.schemas import Body
from soma_agents.web.services import Services

router = APIRouter(tags=["Feedback"])

MAX_TEXT = 100_000


class FeedbackRequest(Body):
    """A judgement of a reply or a conversation.

    `rating`: a number in [-1, 1]; `comment`, `demonstration`: a text; `preference`: the id of the
    inference that is preferred to the target.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    target: Annotated[str, Field(min_length=1, max_length=128)]
    target_kind: Literal["inference", "conversation"] = "inference"
    name: Literal["rating", "comment", "demonstration", "preference"]
    value: Annotated[float, Field(allow_inf_nan=False)] | Annotated[str, Field(min_length=1)]
    source: Literal["HUMAN", "JUDGE", "CODE", "IMPLICIT"] = "HUMAN"
    rationale: Annotated[str, Field(max_length=MAX_TEXT)] = ""

    def check(self) -> None:
        """Refuse values that their name does not take.

        Raises:
            ParameterError: says what the value must be.
        """
        if self.name == "rating":
            if isinstance(self.value, str) or not -1 <= self.value <= 1:
                raise ParameterError(
                    f"a rating is a number from -1 to 1, not {self.value!r:.40}", param="value"
                )
        elif not isinstance(self.value, str) or len(self.value) > MAX_TEXT:
            raise ParameterError(
                f"the value of a {self.name} is a text of at most {MAX_TEXT} characters",
                param="value",
            )
        if self.name == "preference" and self.target_kind != "inference":
            raise ParameterError("a preference is between two inferences", param="target_kind")


# One at a time, so that the same judgement sent twice at once is still one event.
_one_at_a_time = asyncio.Lock()


@router.post("/feedback", status_code=201)
async def feedback(
    body: FeedbackRequest, services: Parts, asked: Judges, response: Response
) -> dict[str, Any]:
    """Judge a reply or a conversation; the same judgement twice counts once."""
    body.check()
    caller = asked.caller
    await _must_exist(services, caller, body.target_kind, body.target)
    if body.name == "preference":
        await _must_exist(services, caller, "inference", str(body.value))
    async with _one_at_a_time:
        known = await _known(services, caller, body)
        identity = _identity(caller, body, known)
        event = FeedbackGiven(feedback=identity, **body.model_dump())
        before = await services.log.end()
        said = await services.publisher.publish(
            event, tenant=caller.tenant, user=caller.user, idempotency=f"feedback/{identity}"
        )
    duplicate = said.offset <= before
    services.gateway.note(f"feedback/{body.target}", said.offset)
    if duplicate:
        response.status_code = 200
    return {"feedback": identity, "target": body.target, "name": body.name, "duplicate": duplicate}


async def _must_exist(services: Services, caller: Caller, kind: str, target: str) -> None:
    exists = await services.directory.ask(
        "conversation_history",
        "exists",
        at_least=await _at_least(services, target),
        tenant=caller.tenant,
        user=caller.user,
        target=target,
        kind=kind,
    )
    if not exists:
        raise NotFoundError(f"there is no {kind} {target!r} to judge; its id came with the answer")


async def _at_least(services: Services, target: str) -> int:
    """Where this gateway saw the target, else everything there is."""
    return services.gateway.seen(target) or await services.log.end()


async def _known(services: Services, caller: Caller, body: FeedbackRequest) -> list[StoredFeedback]:
    found: list[StoredFeedback] = await services.directory.ask(
        "conversation_history",
        "feedback",
        at_least=await _at_least(services, f"feedback/{body.target}"),
        tenant=caller.tenant,
        user=caller.user,
        target=body.target,
    )
    return [f for f in found if (f.name, f.source) == (body.name, body.source)]


def _identity(caller: Caller, body: FeedbackRequest, known: list[StoredFeedback]) -> str:
    """The same for the same judgement, until another one came in between."""
    last_other = next((f.id for f in reversed(known) if f.value != body.value), "")
    what = [caller.tenant, caller.user, body.target, body.name, body.value, body.source, last_other]
    return "fb-" + hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
