"""TrainingDataExporter: writes what may be learnt as an immutable dataset."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from arbiters.envelope import Envelope
from arbiters.kernel.arbiter import Arbiter, Said, on, query
from arbiters.model_events import DatasetExported, DatasetRefused, RoundStarted
from arbiters.ports import DatasetWriter, EventLog
from arbiters.records import DatasetRef, Example
from arbiters.training_data_exporter.examples import Built, build, kinds, sides
from arbiters.training_data_exporter.reading import MATERIAL, UNDOING, Reading
from policies.privacy import PrivacyRules
from policies.training import ExampleRules, Examples, Insufficient, Side, is_sufficient

_COUNTED = MATERIAL | UNDOING | {"DatasetExported"}


class ExportRules(BaseModel):
    """What goes into a dataset, and how much of it there must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heldout_share: float = Field(gt=0, lt=1)
    enough: ExampleRules
    privacy: PrivacyRules = PrivacyRules()


class TrainingDataExporter(Arbiter):
    """Reads the log, asks the policies what may be a target, writes what may.

    It keeps nothing that lasts: a dataset follows from the log, and the newest one is in the log as well.
    """

    name: ClassVar[str] = "training_data_exporter"
    batch: ClassVar[int] = 1
    limit_s: ClassVar[float | None] = 3600.0

    def __init__(self, *, log: EventLog, writer: DatasetWriter, rules: ExportRules) -> None:
        self._log = log
        self._writer = writer
        self._rules = rules
        self._accounts: dict[str, tuple[int, dict[str, Any]]] = {}
        """Tenant → the last statistics, and the offset up to which nothing has changed them."""

    # --- hearing ---------------------------------------------------------------------------

    @on(RoundStarted)
    async def export_round(self, event: RoundStarted, envelope: Envelope) -> Said:
        """Write the dataset of a round, or say why there is too little for one."""
        built = await self._built(envelope.tenant, upto=event.upto)
        split = sides(built, heldout_share=self._rules.heldout_share)
        counts = count(split)
        match is_sufficient(_targets(counts), self._rules.enough):
            case Insufficient(because):
                yield DatasetRefused(round=event.round, because=because + _left_out(built))
            case _:
                circumstances = {"round": event.round, "upto": event.upto, "said": built.said}
                ref = await self._write(envelope.tenant, built, split, circumstances)
                yield DatasetExported(
                    round=event.round,
                    dataset=ref.id,
                    path=ref.path,
                    targets_by_kind=kinds(split),
                    **counts,
                )

    # --- answering -------------------------------------------------------------------------

    @query
    async def export(self, tenant: str = "local", user: str | None = None) -> dict[str, Any]:
        """Write a dataset of all there is now, of one user or of all; where it is, what is in it."""
        built = await self._built(tenant, only=user)
        split = sides(built, heldout_share=self._rules.heldout_share)
        circumstances = {"upto": await self._log.end(), "user": user}
        ref = await self._write(tenant, built, split, circumstances)
        return {"dataset": ref.id, "path": ref.path, **_account(built, split)}

    @query
    async def statistics(self, tenant: str = "local") -> dict[str, Any]:
        """What a dataset of all there is now would hold, why the rest would not, and the latest.

        The log is gone through again only once it has something new that counts.
        """
        upto, known = self._accounts.get(tenant, (0, None))
        if known is not None:
            news = await self._log.read(upto, limit=1, types=_COUNTED)
            if not news.envelopes:
                self._accounts[tenant] = (news.end, known)
                return dict(known)
        upto = await self._log.end()
        reading = await self._read(tenant)
        built = build(reading, self._rules.privacy)
        split = sides(built, heldout_share=self._rules.heldout_share)
        account = _account(built, split) | {"latest": await self.latest(tenant)}
        if reading.is_settled:
            self._accounts[tenant] = (upto, account)
        return dict(account)

    @query
    async def latest(self, tenant: str = "local") -> dict[str, Any] | None:
        """The dataset that was written last for a round."""
        cursor, end = 0, await self._log.end()
        found: dict[str, Any] | None = None
        while cursor < end:
            batch = await self._log.read(cursor, types=frozenset({"DatasetExported"}))
            cursor = batch.end
            for envelope in batch.envelopes:
                if envelope.tenant == tenant:
                    found = {**envelope.payload, "at": envelope.at.isoformat()}
        return found

    # --- doing -----------------------------------------------------------------------------

    async def _built(
        self, tenant: str, *, upto: int | None = None, only: str | None = None
    ) -> Built:
        return build(await self._read(tenant, upto=upto, only=only), self._rules.privacy)

    async def _read(
        self, tenant: str, *, upto: int | None = None, only: str | None = None
    ) -> Reading:
        reading = Reading(tenant, only=only)
        await reading.read(self._log, upto=await self._log.end() if upto is None else upto)
        return reading

    async def _write(
        self,
        tenant: str,
        built: Built,
        split: Mapping[Side, Sequence[Example]],
        circumstances: dict[str, Any],
    ) -> DatasetRef:
        manifest = {
            "tenant": tenant,
            "rules": self._rules.model_dump(mode="json"),
            **circumstances,
            **_account(built, split),
        }
        return await self._writer.write({str(side): some for side, some in split.items()}, manifest)


def count(split: Mapping[Side, Sequence[Example]]) -> dict[str, int]:
    """Targets on each side, and pairs on all sides."""
    targets = {side: sum(e.rejected is None for e in some) for side, some in split.items()}
    pairs = sum(e.rejected is not None for some in split.values() for e in some)
    return {str(side): number for side, number in targets.items()} | {"preferences": pairs}


def _targets(counts: Mapping[str, int]) -> Examples:
    return Examples(counts["train"], counts["validation"], counts["heldout"])


def _account(built: Built, split: Mapping[Side, Sequence[Example]]) -> dict[str, Any]:
    return {**count(split), "targets_by_kind": kinds(split), "excluded": dict(built.excluded)}


def _left_out(built: Built) -> str:
    told = ", ".join(f"{number} as {why}" for why, number in built.excluded.most_common(3))
    return f" (left out: {told})" if told else ""
