"""Specialists beside the personal one: base models that answer when they are asked for by name.

They hold no pointer and stand under no gate: nobody meets one who did not name it.
"""

from typing import ClassVar

from arbiters.envelope import Envelope
from arbiters.errors import ConflictError, NotFoundError
from arbiters.kernel.arbiter import Arbiter, Said, on, query
from arbiters.model_events import (
    RequestRefused,
    SpecialistOffered,
    SpecialistRegistered,
    SpecialistRetired,
    SpecialistUnwanted,
)
from arbiters.ports import Clock
from arbiters.records import ModelVersion
from arbiters.stores import Registry
from policies.routing import name_problem


class SpecialistRegistrar(Arbiter):
    """The part of the evaluation that knows specialists by name."""

    name: ClassVar[str] = "evaluation"

    def __init__(self, *, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock

    @on(SpecialistOffered)
    async def take_on(self, event: SpecialistOffered, _: Envelope) -> Said:
        """Register a model under a name that no other model ever had."""
        if problem := name_problem(event.name):
            yield RequestRefused(because=problem)
            return
        if (known := await self._registry.model(event.model)) is not None:
            yield RequestRefused(because=f"this model answers as {known.name} already")
            return
        version = ModelVersion(
            id=event.model,
            name=event.name,
            base=event.model,
            path="",
            stage="specialist",
            dataset=event.dataset,
            round="",
            hyperparameters=event.hyperparameters,
            code_version="",
            registered_at=self._clock.now(),
        )
        try:
            await self._registry.add_specialist(version)
        except ConflictError as error:
            yield RequestRefused(because=str(error))
            return
        yield SpecialistRegistered(name=event.name, model=event.model, dataset=event.dataset)

    @on(SpecialistUnwanted)
    async def dismiss(self, event: SpecialistUnwanted, _: Envelope) -> Said:
        """Let nobody ask a specialist any more; its name stays taken, its file stays."""
        try:
            await self._registry.retire_specialist(event.name)
        except NotFoundError as error:
            yield RequestRefused(because=str(error))
            return
        yield SpecialistRetired(name=event.name)

    @query
    async def specialists(self) -> list[ModelVersion]:
        """Every specialist that may be asked for, by name."""
        return await self._registry.specialists()
