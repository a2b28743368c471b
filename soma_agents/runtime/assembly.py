"""Building the arbiters: which there are, over which stores, in which files."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from arbiters.auto_training_coordinator import AutoTrainingCoordinator
from arbiters.conversation_history import ConversationHistory
from arbiters.errors import InvalidError
from arbiters.evaluation.arbiter import EvaluationArbiter
from arbiters.kernel.arbiter import Arbiter
from arbiters.kernel.host import Host
from arbiters.personality_forge import PersonalityForge
from arbiters.ports import Clock, EventLog, Examiner, Ids, Trainer
from arbiters.records import ModelVersion
from arbiters.training_data_exporter.arbiter import ExportRules, TrainingDataExporter
from arbiters.user_profile import UserProfile
from arbiters.workshop import Workshop
from policies.promotion import PromotionRules, promotion_rules
from policies.training import ExampleRules
from soma_agents.language.source import BASE_NAME, base_id, locate
from soma_agents.persona.measures import ComputedMeasures
from soma_agents.settings import Settings
from soma_agents.storage.conversations import SqliteConversationStore
from soma_agents.storage.database import Database
from soma_agents.storage.datasets import FileDatasetWriter
from soma_agents.storage.experiments import SqliteExperimentStore
from soma_agents.storage.identifiers import SystemClock, Uuid7
from soma_agents.storage.ledger import SqliteLedger
from soma_agents.storage.personalities import SqlitePersonalityStore
from soma_agents.storage.profiles import SqliteProfileStore
from soma_agents.storage.registry import SqliteRegistry
from soma_agents.storage.rounds import SqliteRoundStore
from soma_agents.storage.sqlite_files import Schema


@dataclass(frozen=True, slots=True)
class Tools:
    """What arbiters are built with."""

    settings: Settings
    log: EventLog
    trainer: Trainer | None
    examiner: Examiner | None
    clock: Clock
    ids: Ids


@dataclass(frozen=True, slots=True)
class Opened:
    """A host over its open database."""

    host: Host
    copy: Callable[[Path], Awaitable[None]]
    """See `Database.copy`."""
    close: Callable[[], Awaitable[None]]


async def _conversation_history(database: Database, _: Tools) -> Arbiter:
    return ConversationHistory(store=SqliteConversationStore(database))


async def _user_profile(database: Database, _: Tools) -> Arbiter:
    return UserProfile(store=SqliteProfileStore(database))


async def _personality_forge(database: Database, _: Tools) -> Arbiter:
    return PersonalityForge(store=SqlitePersonalityStore(database), measures=ComputedMeasures())


async def _training_data_exporter(_: Database, tools: Tools) -> Arbiter:
    settings = tools.settings
    return TrainingDataExporter(
        log=tools.log,
        writer=FileDatasetWriter(settings.home / "datasets"),
        rules=ExportRules(
            heldout_share=settings.evaluation.heldout_share,
            enough=ExampleRules(min_train=settings.training.min_examples),
        ),
    )


async def _auto_training_coordinator(database: Database, tools: Tools) -> Arbiter:
    return AutoTrainingCoordinator(
        rounds=SqliteRoundStore(database),
        clock=tools.clock,
        base=base_id(locate(tools.settings.engine.model)),
        min_new_messages=tools.settings.training.min_new_messages,
    )


async def _evaluation(database: Database, tools: Tools) -> Arbiter:
    registry = SqliteRegistry(database)
    at = tools.clock.now()
    await registry.install(_base_version(tools.settings.engine.model, tools.clock), at=at)
    return EvaluationArbiter(
        registry=registry,
        experiments=SqliteExperimentStore(database),
        clock=tools.clock,
        rules=lambda ordinal: _rules(tools.settings, ordinal),
    )


async def _workshop(_: Database, tools: Tools) -> Arbiter:
    if tools.trainer is None or tools.examiner is None:
        raise InvalidError("a workshop needs a trainer and an examiner")
    return Workshop(
        trainer=tools.trainer,
        examiner=tools.examiner,
        silence_s=tools.settings.training.silence_s,
        comparison_s=tools.settings.evaluation.max_seconds,
    )


_BUILDERS: dict[str, tuple[Callable[[Database, Tools], Awaitable[Arbiter]], tuple[Schema, ...]]] = {
    "conversation_history": (_conversation_history, (SqliteConversationStore.schema,)),
    "user_profile": (_user_profile, (SqliteProfileStore.schema,)),
    "personality_forge": (_personality_forge, (SqlitePersonalityStore.schema,)),
    "training_data_exporter": (_training_data_exporter, ()),
    "auto_training_coordinator": (_auto_training_coordinator, (SqliteRoundStore.schema,)),
    "evaluation": (_evaluation, (SqliteRegistry.schema, SqliteExperimentStore.schema)),
    "workshop": (_workshop, ()),
}
ARBITERS = tuple(_BUILDERS)
"""Names of all arbiters."""


async def build_host(
    name: str,
    settings: Settings,
    *,
    log: EventLog,
    trainer: Trainer | None = None,
    examiner: Examiner | None = None,
    clock: Clock | None = None,
    ids: Ids | None = None,
) -> Opened:
    """Open an arbiter's database and put its host over it."""
    build, _ = _BUILDERS[name]
    tools = Tools(
        settings=settings,
        log=log,
        trainer=trainer,
        examiner=examiner,
        clock=clock or SystemClock(),
        ids=ids or Uuid7(),
    )
    database = await Database.open(tools.settings.state_file(name), *schemas_of(name))
    try:
        arbiter = await build(database, tools)
    except BaseException:
        await database.close()
        raise
    host = Host(
        arbiter,
        log=tools.log,
        ledger=SqliteLedger(database),
        clock=tools.clock,
        ids=tools.ids,
    )
    return Opened(host=host, copy=database.copy, close=database.close)


def schemas_of(name: str) -> tuple[Schema, ...]:
    """The tables in an arbiter's database."""
    return SqliteLedger.schema, *_BUILDERS[name][1]


def _base_version(source: str, clock: Clock) -> ModelVersion:
    """The model that answers before anything was learnt."""
    path: Path = locate(source)
    identity = base_id(path)
    return ModelVersion(
        id=identity,
        name=BASE_NAME,
        base=identity,
        path="",
        stage="champion",
        dataset="",
        round="",
        hyperparameters={},
        code_version="",
        registered_at=clock.now(),
    )


def _rules(settings: Settings, ordinal: int) -> PromotionRules:
    """The rules in force for the `ordinal`-th candidate ever."""
    evaluation, canary = settings.evaluation, settings.canary
    return promotion_rules(
        ordinal,
        alpha=evaluation.alpha,
        min_effect=evaluation.min_effect,
        forgetting_margin=evaluation.forgetting_margin,
        safety_margin=evaluation.safety_margin,
        personality_margin=evaluation.personality_margin,
        latency_margin=evaluation.latency_margin,
        trigger_margin=evaluation.trigger_margin,
        canary=canary.enabled,
        share=canary.share,
        min_judgements=canary.min_judgements,
        max_hours=canary.max_hours,
        watch_hours=canary.watch_hours,
        live_margin=canary.margin,
    )
