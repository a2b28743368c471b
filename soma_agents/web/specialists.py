"""`/api/specialists`: base models beside the first one, asked for by name."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from arbiters.model_events import SpecialistOffered, SpecialistUnwanted
from soma_agents.runtime.bases import kept_lineage
from soma_agents.web.dependencies import Looks, Parts, Promotes
from soma_agents.web.schemas import Body
from soma_agents.web.wishes import granted

router = APIRouter(prefix="/api/specialists", tags=["Learning"])


class Offer(Body):
    """A base model that lies among the models (`soma models add` puts it there), and its name."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    model: Annotated[str, Field(min_length=1, max_length=100)]


@router.get("")
async def specialists(services: Parts, _: Looks) -> dict[str, Any]:
    """Every specialist that may be asked for, with its lineage."""
    return {"data": [asdict(version) for version in services.specialists.versions]}


@router.post("", status_code=201)
async def add(body: Offer, services: Parts, asked: Promotes) -> dict[str, Any]:
    """Let a base model be asked for by name, once it has spoken here."""
    models = services.settings.home / "models"
    lineage = await asyncio.to_thread(kept_lineage, body.model, models)
    await services.specialists.ready(body.model)
    offer = SpecialistOffered(
        name=body.name,
        model=body.model,
        dataset=str(lineage.get("corpus", "")),
        hyperparameters=lineage,
    )
    answer = await granted(services, asked, offer)
    return {"name": body.name, "model": body.model, "event": answer.id}


@router.delete("/{name}")
async def remove(name: str, services: Parts, asked: Promotes) -> dict[str, Any]:
    """Let nobody ask for a specialist any more; its name stays taken, its file stays."""
    answer = await granted(services, asked, SpecialistUnwanted(name=name))
    return {"name": name, "retired": True, "event": answer.id}
