"""A whole round over the log: every arbiter of the gate on its own host."""

from functools import partial

from arbiters.auto_training_coordinator import AutoTrainingCoordinator
from arbiters.evaluation.arbiter import EvaluationArbiter
from arbiters.kernel.arbiter import Arbiter, on
from arbiters.kernel.bus import Publisher
from arbiters.kernel.host import Host
from arbiters.model_events import (
    ComparisonFinished,
    DatasetExported,
    Observation,
    RoundRequested,
    RoundStarted,
    TrainingFinished,
)
from arbiters.records import ModelVersion
from arbiters.testing import (
    FakeClock,
    FakeExaminer,
    MemoryEventLog,
    MemoryExperimentStore,
    MemoryLedger,
    MemoryRegistry,
    MemoryRoundStore,
    SequentialIds,
)
from arbiters.workshop import Workshop
from policies.promotion import promotion_rules

RULES = partial(
    promotion_rules,
    alpha=0.05,
    min_effect=0.01,
    forgetting_margin=0.01,
    safety_margin=0.05,
    personality_margin=0.1,
    latency_margin=0.5,
    trigger_margin=1.0,
    canary=False,
    share=0.2,
    min_judgements=10,
    max_hours=72,
    watch_hours=24,
    live_margin=0.1,
)


class Exporter(Arbiter):
    """Always has the same dataset."""

    name = "training_data_exporter"

    @on(RoundStarted)
    async def export(self, event, _):
        yield DatasetExported(
            round=event.round,
            dataset="d1",
            path="datasets/d1",
            train=30,
            validation=3,
            heldout=8,
            preferences=0,
            targets_by_kind={},
        )


class Trainer:
    """Trains at once, unless it is `broken`."""

    broken = False

    async def train(self, request):
        if self.broken:
            raise OSError("out of memory")
        yield TrainingFinished(
            round=request.round,
            model="lora-1",
            path="models/lora-1",
            hyperparameters={},
            code_version="1",
            steps=4,
            tokens=100,
            seconds=3.0,
            train_loss=1.0,
            validation_loss=1.1,
        )


class Examiner(FakeExaminer):
    """Finds every candidate better."""

    async def compare(self, request):
        values = dict.fromkeys(("forgetting", "safety", "personality", "latency", "triggers"), 2.0)
        return ComparisonFinished(
            round=request.round,
            experiment=request.experiment,
            candidate=request.candidate,
            observations=tuple(
                Observation(suite=suite, item=str(i), champion=2.0, candidate=value)
                for suite, value in (values | {"target": 1.5}).items()
                for i in range(40)
            ),
            seconds=1.0,
        )


class World:
    """The log with a host for each arbiter, as they come back after a restart."""

    def __init__(self, trainer):
        self.log = MemoryEventLog()
        self.clock, self.ids = FakeClock(), SequentialIds()
        self.registry, self.experiments = MemoryRegistry(), MemoryExperimentStore()
        self.rounds = MemoryRoundStore()
        arbiters = (
            AutoTrainingCoordinator(
                rounds=self.rounds, clock=self.clock, base="base", min_new_messages=500
            ),
            Exporter(),
            Workshop(trainer=trainer, examiner=Examiner(), silence_s=60.0, comparison_s=60.0),
            EvaluationArbiter(
                registry=self.registry,
                experiments=self.experiments,
                clock=self.clock,
                rules=RULES,
            ),
        )
        stores = {
            "evaluation": (self.registry, self.experiments),
            "auto_training_coordinator": (self.rounds,),
        }
        self._parts = [(a, MemoryLedger(*stores.get(a.name, ()))) for a in arbiters]

    async def begin(self):
        base = ModelVersion("base", "", "base", "", "champion", "", "", {}, "", self.clock.now())
        await self.registry.install(base, at=self.clock.now())
        publisher = Publisher(log=self.log, clock=self.clock, ids=self.ids, producer="test")
        await publisher.publish(RoundRequested(by="user"))

    async def settle(self):
        """Fresh hosts handle everything there is; whether there was anything."""
        before = await self.log.end()
        for arbiter, ledger in self._parts:
            host = Host(arbiter, log=self.log, ledger=ledger, clock=self.clock, ids=self.ids)
            await host.drain()
        return await self.log.end() > before

    async def types(self):
        return [envelope.type for envelope in (await self.log.read(0)).envelopes]


async def test_a_round_runs_from_a_wish_to_a_new_champion_through_a_restart_at_every_step():
    world = World(Trainer())
    await world.begin()

    while await world.settle():
        pass

    assert await world.types() == [
        "RoundRequested",
        "RoundStarted",
        "DatasetExported",
        "TrainingRequested",
        "TrainingFinished",
        "CandidateRegistered",
        "ComparisonRequested",
        "ComparisonFinished",
        "ModelPromoted",
        "EvaluationFinished",
        "RoundFinished",
    ]
    assert (await world.registry.pointer()).champion == "lora-1"
    correlations = {envelope.correlation for envelope in (await world.log.read(0)).envelopes}
    assert len(correlations) == 1


async def test_a_workshop_that_breaks_down_ends_the_round_with_a_receipt(monkeypatch):
    monkeypatch.setattr("arbiters.kernel.host.RETRY_SECONDS", (0.0,) * 5)
    trainer = Trainer()
    trainer.broken = True
    world = World(trainer)
    await world.begin()

    while await world.settle():
        pass

    assert (await world.types())[-2:] == ["ArbiterFailed", "RoundFinished"]
    (state,) = await world.experiments.finished()
    assert state.receipt["verdict"] == "failed"
    assert "workshop could not handle TrainingRequested" in state.receipt["because"]
    assert await world.rounds.current() is None
