import json
from dataclasses import replace
from functools import partial
from math import nan

import pytest

from arbiters.errors import NotFoundError
from arbiters.evaluation.arbiter import EvaluationArbiter
from arbiters.events import ClockTicked, FeedbackGiven, ReplyGiven, Timings
from arbiters.model_events import (
    CanaryStarted,
    CandidateHeld,
    CandidateRegistered,
    CandidateRejected,
    ComparisonFailed,
    ComparisonFinished,
    ComparisonRequested,
    DatasetExported,
    EvaluationFinished,
    ModelPromoted,
    ModelRolledBack,
    Observation,
    PromotionRequested,
    RequestRefused,
    RollbackRequested,
    RoundFinished,
    RoundStarted,
    SpecialistOffered,
    SpecialistRegistered,
    SpecialistRetired,
    SpecialistUnwanted,
    TrainingFinished,
)
from arbiters.records import ModelVersion
from arbiters.testing import FakeClock, MemoryExperimentStore, MemoryRegistry, react
from policies.promotion import promotion_rules
from policies.statistics import spend

SETTINGS = {
    "alpha": 0.05,
    "min_effect": 0.01,
    "forgetting_margin": 0.01,
    "safety_margin": 0.05,
    "personality_margin": 0.1,
    "latency_margin": 0.5,
    "trigger_margin": 1.0,
    "canary": False,
    "share": 0.2,
    "min_judgements": 10,
    "max_hours": 72,
    "watch_hours": 24,
    "live_margin": 0.1,
}
SAMPLE = {"prompt": "p", "champion": "c", "candidate": "d", "reference": "r"}


class Gate:
    """An evaluation with its world, and the steps of a round in short words."""

    def __init__(self, **settings):
        self.clock = FakeClock()
        self.registry = MemoryRegistry()
        self.experiments = MemoryExperimentStore()
        self.arbiter = EvaluationArbiter(
            registry=self.registry,
            experiments=self.experiments,
            clock=self.clock,
            rules=partial(promotion_rules, **SETTINGS | settings),
        )
        self.inferences = 0

    async def install(self):
        version = ModelVersion(
            id="base",
            name="",
            base="base",
            path="",
            stage="candidate",
            dataset="",
            round="",
            hyperparameters={},
            code_version="",
            registered_at=self.clock.now(),
        )
        await self.registry.install(version, at=self.clock.now())

    async def hear(self, event):
        return await react(self.arbiter, event)

    async def export(self, round_):
        self.clock.advance(minutes=1)
        await self.hear(RoundStarted(round=round_, because="due", upto=1, new_messages=1))
        await self.hear(
            DatasetExported(
                round=round_,
                dataset=f"data-{round_}",
                path=f"datasets/{round_}",
                train=30,
                validation=3,
                heldout=8,
                preferences=2,
                targets_by_kind={"imported": 41},
            )
        )

    async def train(self, round_="r1", model="lora-1"):
        await self.export(round_)
        return await self.hear(trained(round_, model))

    async def compare(self, round_="r1", model="lora-1", **suites):
        self.clock.advance(minutes=4)
        return await self.hear(compared(round_, model, **suites))

    async def round(self, round_="r1", model="lora-1", **suites):
        await self.train(round_, model)
        return await self.compare(round_, model, **suites)

    async def rate(self, model, values, experiment=None):
        """Answers of a model with their ratings; what was said about them."""
        said = []
        for value in values:
            self.inferences += 1
            await self.hear(replied(f"i{self.inferences}", model, experiment))
            said += await self.hear(rated(f"i{self.inferences}", value))
        return said

    async def champion(self):
        return (await self.registry.pointer()).champion

    async def stage(self, model):
        return (await self.registry.model(model)).stage


def trained(round_, model):
    return TrainingFinished(
        round=round_,
        model=model,
        path=f"models/{model}",
        hyperparameters={"rank": 32},
        code_version="1",
        steps=4,
        tokens=100,
        seconds=3.0,
        train_loss=1.0,
        validation_loss=1.1,
    )


def compared(round_="r1", model="lora-1", **candidates):
    """Fifty items a suite, the champion at 2.0; suites of the candidate can be given."""
    rails = ("forgetting", "safety", "personality", "latency", "triggers")
    values = {"target": 1.5, **dict.fromkeys(rails, 2.0)}
    return ComparisonFinished(
        round=round_,
        experiment=f"exp-{round_}",
        candidate=model,
        observations=tuple(
            Observation(suite=suite, item=f"item-{i}", champion=2.0, candidate=value)
            for suite, value in (values | candidates).items()
            for i in range(50)
        ),
        samples=(SAMPLE,),
        seconds=60.0,
    )


def replied(inference, model, experiment):
    return ReplyGiven(
        conversation="c1",
        message=f"m-{inference}",
        inference=inference,
        content="hi",
        model=model,
        specialist="personal",
        experiment=experiment,
        config_hash="0",
        finish="stop",
        timings=Timings(first_token=0.1, total=0.2, prompt_tokens=3, completion_tokens=2),
    )


def rated(inference, value, **rest):
    return FeedbackGiven(
        feedback=f"f-{inference}",
        target=inference,
        target_kind="inference",
        name=rest.pop("name", "rating"),
        value=value,
        **rest,
    )


def types(events):
    return [type(event) for event in events]


@pytest.fixture
async def gate():
    gate = Gate()
    await gate.install()
    return gate


@pytest.fixture
async def live():
    """A gate with a canary under way."""
    gate = Gate(canary=True)
    await gate.install()
    await gate.round()
    return gate


# --- a candidate appears -------------------------------------------------------------------


async def test_a_candidate_gets_its_name_and_its_rules_before_it_is_compared(gate):
    registered, requested = await gate.train()

    assert registered == CandidateRegistered(
        round="r1",
        model="lora-1",
        name="soma-v1",
        dataset="data-r1",
        base="base",
        path="models/lora-1",
    )
    assert requested == ComparisonRequested(
        round="r1",
        experiment="exp-r1",
        champion="base",
        candidate="lora-1",
        dataset_path="datasets/r1",
        rules=promotion_rules(1, **SETTINGS).model_dump(mode="json"),
    )
    stored = await gate.experiments.experiment("exp-r1")
    assert stored.rules == requested.rules
    assert stored.phase == "offline"


async def test_each_candidate_is_judged_more_strictly_than_the_one_before(gate):
    await gate.round("r1", "lora-1", target=2.5)

    _, requested = await gate.train("r2", "lora-2")

    assert requested.rules["ordinal"] == 2
    assert requested.rules["level"] == spend(0.05, 2)


async def test_a_training_finished_twice_is_registered_once(gate):
    await gate.train()

    assert await gate.hear(trained("r1", "lora-1")) == []


async def test_a_dataset_or_training_of_no_open_round_is_left_alone(gate):
    await gate.round()

    assert await gate.hear(trained("r1", "lora-1")) == []
    assert await gate.hear(trained("never", "lora-1")) == []
    late = DatasetExported(
        round="never",
        dataset="d",
        path="datasets/d",
        train=1,
        validation=1,
        heldout=1,
        preferences=0,
        targets_by_kind={},
    )
    assert await gate.hear(late) == []
    assert await gate.experiments.running() == []


async def test_the_champion_trained_again_is_nothing_new(gate):
    await gate.round("r1", "lora-1")

    *_, verdict = await gate.train("r2", "lora-1")

    assert verdict.verdict == "held"
    assert "nothing new" in verdict.because
    assert await gate.stage("lora-1") == "champion"


# --- the verdict ---------------------------------------------------------------------------


async def test_a_better_candidate_is_promoted_with_everything_the_verdict_rests_on(gate):
    promoted, verdict = await gate.round()

    assert promoted.model == "lora-1"
    assert promoted.name == "soma-v1"
    assert promoted.previous == "base"
    assert promoted.round == "r1"
    assert (promoted.watch_until - gate.clock.now()).total_seconds() == 24 * 3600
    assert verdict.verdict == "promoted"
    assert verdict.because == promoted.because
    assert verdict.target.before == 2.0
    assert verdict.target.after == 1.5
    assert verdict.target.interval[0] > 0
    assert [rail.name for rail in verdict.guardrails] == [
        "forgetting",
        "safety",
        "personality",
        "latency",
        "triggers",
    ]
    assert verdict.seconds == 240.0
    assert await gate.champion() == "lora-1"
    assert await gate.stage("base") == "retired"


async def test_a_worse_candidate_is_rejected(gate):
    rejected, verdict = await gate.round(target=2.5)

    assert rejected == CandidateRejected(round="r1", model="lora-1", because=verdict.because)
    assert verdict.verdict == "rejected"
    assert await gate.stage("lora-1") == "rejected"
    assert await gate.champion() == "base"


async def test_an_undecided_candidate_is_held(gate):
    held, verdict = await gate.round(target=1.995)

    assert types([held, verdict]) == [CandidateHeld, EvaluationFinished]
    assert await gate.stage("lora-1") == "held"


@pytest.mark.parametrize("nonsense", [{"target": nan}, {"forgetting": nan}])
async def test_a_candidate_that_gives_no_numbers_is_rejected(gate, nonsense):
    rejected, verdict = await gate.round(**nonsense)

    assert types([rejected, verdict]) == [CandidateRejected, EvaluationFinished]
    assert "is not a number" in rejected.because
    assert verdict.target is None


async def test_a_candidate_that_cannot_be_measured_is_rejected(gate):
    await gate.train()
    failed = ComparisonFailed(
        round="r1", experiment="exp-r1", candidate="lora-1", because="weights are NaN"
    )

    rejected, verdict = await gate.hear(failed)

    assert rejected.because == "it could not be measured: weights are NaN"
    assert verdict.verdict == "rejected"
    assert await gate.hear(failed) == []


async def test_a_comparison_counts_once(gate):
    await gate.round()

    assert await gate.compare() == []
    assert await gate.compare("never") == []


async def test_a_candidate_compared_with_a_former_champion_is_held(gate):
    await gate.round("r1", "lora-1")
    await gate.train("r2", "lora-2")
    await gate.hear(RollbackRequested())

    held, verdict = await gate.compare("r2", "lora-2")

    assert types([held, verdict]) == [CandidateHeld, EvaluationFinished]
    assert "not in service any more" in verdict.because
    assert await gate.champion() == "base"


async def test_a_person_may_choose_a_candidate_that_was_held_only_for_its_former_champion(gate):
    await gate.round("r1", "lora-1")
    await gate.train("r2", "lora-2")
    await gate.hear(RollbackRequested())
    await gate.compare("r2", "lora-2")

    promoted, *_ = await gate.hear(PromotionRequested(model="lora-2"))

    assert (promoted.model, promoted.because) == ("lora-2", "asked by the user")
    assert await gate.champion() == "lora-2"


async def test_an_old_version_trained_again_stays_in_service_whatever_the_verdict(gate):
    await gate.round("r1", "lora-1")
    await gate.hear(RollbackRequested())
    await gate.train("r2", "lora-1")
    await gate.registry.set_stage("lora-1", "retired")
    await gate.hear(PromotionRequested(model="lora-1"))

    held, _ = await gate.compare("r2", "lora-1")

    assert isinstance(held, CandidateHeld)
    assert await gate.stage("lora-1") == "champion"


# --- receipts ------------------------------------------------------------------------------


async def test_a_receipt_says_what_was_learnt_what_it_did_and_what_it_cost(gate):
    await gate.round()

    (receipt,) = await gate.arbiter.receipts()

    assert json.loads(json.dumps(receipt)) == receipt
    assert receipt["round"] == "r1"
    assert receipt["verdict"] == "promoted"
    assert receipt["because"].startswith("better on the target")
    assert receipt["candidate"] == {"name": "soma-v1", "id": "lora-1"}
    assert receipt["target"]["name"] == "target"
    assert (receipt["target"]["before"], receipt["target"]["after"]) == (2.0, 1.5)
    assert len(receipt["target"]["interval"]) == 2
    assert {"name", "before", "after", "margin", "ok"} <= set(receipt["guardrails"][0])
    assert receipt["seconds"] == 240.0
    assert receipt["learnt"]["targets_by_kind"] == {"imported": 41}
    assert receipt["training"] == {"steps": 4, "tokens": 100, "seconds": 3.0}
    assert receipt["samples"] == [SAMPLE]


async def test_a_failed_round_has_a_receipt_too(gate):
    await gate.export("r1")

    failed = RoundFinished(round="r1", verdict="failed", because="disk full", seconds=9.0)
    assert await gate.hear(failed) == []

    (receipt,) = await gate.arbiter.receipts()
    assert receipt["verdict"] == "failed"
    assert receipt["because"] == "disk full"
    assert receipt["candidate"] is None
    assert receipt["target"] is None
    assert receipt["guardrails"] == []


async def test_a_candidate_whose_round_failed_is_held(gate):
    await gate.train()

    await gate.hear(RoundFinished(round="r1", verdict="failed", because="crash", seconds=9.0))

    assert await gate.stage("lora-1") == "held"
    assert await gate.compare() == []


async def test_a_round_that_ended_with_a_verdict_keeps_its_receipt(gate):
    await gate.round()

    await gate.hear(RoundFinished(round="r1", verdict="promoted", because="x", seconds=9.0))

    (receipt,) = await gate.arbiter.receipts()
    assert receipt["because"] != "x"


async def test_receipts_come_newest_first(gate):
    await gate.round("r1", "lora-1")
    await gate.export("r2")
    await gate.hear(RoundFinished(round="r2", verdict="failed", because="x", seconds=9.0))
    await gate.round("r3", "lora-3", target=2.5)

    assert [r["round"] for r in await gate.arbiter.receipts()] == ["r3", "r2", "r1"]
    assert [r["round"] for r in await gate.arbiter.receipts(limit=1)] == ["r3"]


# --- the canary ----------------------------------------------------------------------------


async def test_with_a_canary_evidence_alone_does_not_promote():
    gate = Gate(canary=True)
    await gate.install()

    (started,) = await gate.round()

    assert started == CanaryStarted(
        round="r1", experiment="exp-r1", champion="base", candidate="lora-1", share=0.2
    )
    assert await gate.champion() == "base"
    serving = await gate.arbiter.serving()
    assert serving.champion.id == "base"
    assert serving.canary.candidate.id == "lora-1"
    assert (serving.canary.experiment, serving.canary.share) == ("exp-r1", 0.2)


async def test_a_candidate_that_people_like_is_promoted_from_the_canary(live):
    await live.rate("base", [-0.5] * 40, "exp-r1")
    said = await live.rate("lora-1", [1.0] * 40, "exp-r1")

    promoted, verdict = said[:2]
    assert isinstance(promoted, ModelPromoted)
    assert "better on the target" in promoted.because
    assert "no worse in use" in promoted.because
    assert verdict.canary.after == 1.0
    assert await live.champion() == "lora-1"
    assert (await live.arbiter.serving()).canary is None


async def test_a_candidate_that_people_dislike_is_rejected_from_the_canary(live):
    await live.rate("base", [1.0] * 30, "exp-r1")
    rejected, verdict = await live.rate("lora-1", [-1.0] * 30, "exp-r1")

    assert isinstance(rejected, CandidateRejected)
    assert verdict.verdict == "rejected"
    assert verdict.canary.interval[1] < 0
    assert verdict.target.ok


async def test_an_undecided_canary_is_held_when_its_time_is_over(live):
    assert await live.hear(ClockTicked(at=live.clock.advance(hours=71))) == []

    held, verdict = await live.hear(ClockTicked(at=live.clock.advance(hours=1)))

    assert isinstance(held, CandidateHeld)
    assert "undecided after 72 hours" in verdict.because


async def test_what_passed_the_comparison_and_was_held_in_use_may_be_promoted_by_a_person(live):
    await live.hear(ClockTicked(at=live.clock.advance(hours=72)))

    (promoted,) = await live.hear(PromotionRequested(model="soma-v1"))

    assert promoted.model == "lora-1"


async def test_a_candidate_in_a_canary_waits_for_its_verdict(live):
    (refused,) = await live.hear(PromotionRequested(model="lora-1"))

    assert "still being compared" in refused.because


async def test_a_canary_ends_when_its_champion_goes(live):
    await live.rate("base", [0.0], "exp-r1")
    await live.registry.register(replace(await live.registry.model("lora-1"), id="lora-0"))
    await live.registry.set_stage("lora-0", "retired")

    promoted, held, verdict = await live.hear(PromotionRequested(model="lora-0"))

    assert isinstance(promoted, ModelPromoted)
    assert types([held, verdict]) == [CandidateHeld, EvaluationFinished]
    assert "not in service any more" in verdict.because


async def test_a_comparison_that_fails_during_the_canary_is_too_late(live):
    failed = ComparisonFailed(
        round="r1", experiment="exp-r1", candidate="lora-1", because="too late"
    )

    assert await live.hear(failed) == []
    assert await live.compare() == []


# --- ratings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "feedback",
    [
        rated("i1", -1.0, name="comment"),
        rated("i1", -1.0, source="IMPLICIT"),
        rated("i1", "bad"),
        rated("i1", nan),
        rated("unknown", -1.0),
    ],
)
async def test_only_a_persons_rating_of_a_known_answer_counts(gate, feedback):
    await gate.hear(replied("i1", "base", None))

    assert await gate.hear(feedback) == []
    assert await gate.experiments.watched("base") == []


async def test_a_rating_counts_no_more_than_one(gate):
    await gate.rate("base", [500.0, -500.0, 0.25])

    assert await gate.experiments.watched("base") == [1.0, -1.0, 0.25]


# --- the watch window ----------------------------------------------------------------------


async def test_a_promotion_after_which_people_are_worse_off_is_undone(gate):
    await gate.rate("base", [1.0] * 20)
    await gate.round()

    (rolled_back,) = await gate.rate("lora-1", [-1.0] * 20)

    assert rolled_back.automatic
    assert rolled_back.model == "lora-1"
    assert rolled_back.restored == "base"
    assert rolled_back.restored_name == "soma-v0"
    assert rolled_back.because.startswith("worse since the promotion")
    assert await gate.champion() == "base"


async def test_after_the_watch_window_nothing_is_undone(gate):
    await gate.round()
    gate.clock.advance(hours=25)

    assert await gate.rate("lora-1", [-1.0] * 30) == []


async def test_ratings_of_other_models_undo_nothing(gate):
    await gate.round()

    assert await gate.rate("base", [-1.0] * 30) == []


async def test_a_champion_that_never_passed_here_is_not_watched(gate):
    other = ModelVersion(
        id="brought",
        name="",
        base="base",
        path="models/brought",
        stage="retired",
        dataset="",
        round="elsewhere",
        hyperparameters={},
        code_version="",
        registered_at=gate.clock.now(),
    )
    await gate.registry.register(other)
    await gate.registry.swap(
        expected="base",
        champion="brought",
        at=gate.clock.now(),
        watch_until=gate.clock.advance(hours=1),
    )

    assert await gate.rate("brought", [-1.0] * 30) == []


async def test_what_a_person_promoted_statistics_do_not_undo(gate):
    await gate.round()
    await gate.hear(RollbackRequested())
    await gate.hear(PromotionRequested(model="lora-1"))

    assert await gate.rate("lora-1", [-1.0] * 30) == []


# --- a person's wish -----------------------------------------------------------------------


async def test_a_promotion_is_undone_and_done_again(gate):
    await gate.round()

    assert await gate.hear(RollbackRequested()) == [
        ModelRolledBack(
            model="lora-1",
            restored="base",
            restored_name="soma-v0",
            automatic=False,
            because="asked by the user",
        )
    ]
    assert await gate.champion() == "base"

    assert await gate.hear(PromotionRequested(model="soma-v1")) == [
        ModelPromoted(model="lora-1", name="soma-v1", previous="base", because="asked by the user")
    ]
    assert await gate.champion() == "lora-1"

    assert types(await gate.hear(RollbackRequested())) == [ModelRolledBack]
    assert await gate.champion() == "base"


async def test_a_rollback_is_not_undone_by_another(gate):
    await gate.round()
    await gate.hear(RollbackRequested())

    assert await gate.hear(RollbackRequested()) == [
        RequestRefused(
            because="the promotion of soma-v1 is undone already; 'soma promote soma-v1' repeats it"
        )
    ]


async def test_the_first_model_has_nothing_to_go_back_to(gate):
    assert await gate.hear(RollbackRequested()) == [
        RequestRefused(because="there is no model before the one in service")
    ]


async def test_the_base_may_always_be_chosen(gate):
    await gate.round()
    await gate.hear(PromotionRequested(model="soma-v0"))
    await gate.hear(RollbackRequested())
    assert await gate.champion() == "lora-1"

    (promoted,) = await gate.hear(PromotionRequested(model="base"))

    assert promoted.name == "soma-v0"


@pytest.mark.parametrize(
    ("suites", "because"),
    [
        ({"target": 2.5}, "soma-v1 did not pass the gate (rejected)"),
        ({"target": nan}, "soma-v1 did not pass the gate (rejected)"),
        ({"target": 1.995}, "soma-v1 did not pass the gate (held)"),
    ],
)
async def test_nobody_can_promote_what_did_not_pass_the_gate(gate, suites, because):
    await gate.round(**suites)

    (refused,) = await gate.hear(PromotionRequested(model="soma-v1"))

    assert refused.because.startswith(because)
    assert await gate.champion() == "base"


async def test_nobody_can_promote_what_is_not_there_or_there_already(gate):
    assert await gate.hear(PromotionRequested(model="soma-v9")) == [
        RequestRefused(because="there is no model 'soma-v9'; see 'soma models'")
    ]
    assert await gate.hear(PromotionRequested(model="base")) == [
        RequestRefused(because="soma-v0 is in service already")
    ]


# --- questions -----------------------------------------------------------------------------


async def test_the_gateway_learns_what_to_load(gate):
    await gate.round()

    serving = await gate.arbiter.serving()

    assert (serving.champion.id, serving.champion.path) == ("lora-1", "models/lora-1")
    assert serving.previous.id == "base"
    assert serving.canary is None
    assert (await gate.arbiter.pointer()).champion == "lora-1"
    assert [version.name for version in await gate.arbiter.models()] == ["soma-v1", "soma-v0"]


async def test_a_pointer_to_a_lost_model_says_so(gate):
    await gate.round()
    del gate.registry._models["base"]

    with pytest.raises(NotFoundError, match="'base' is not registered"):
        await gate.arbiter.serving()


# --- specialists ---------------------------------------------------------------------------

POET = SpecialistOffered(name="poet", model="base-2", dataset="books", hyperparameters={"a": 1})


async def test_a_base_model_is_registered_as_a_specialist_by_its_name(gate):
    said = await gate.hear(POET)

    assert said == [SpecialistRegistered(name="poet", model="base-2", dataset="books")]
    (known,) = await gate.arbiter.specialists()
    assert (known.name, known.id, known.base, known.path) == ("poet", "base-2", "base-2", "")
    assert (known.stage, known.dataset, known.hyperparameters) == ("specialist", "books", {"a": 1})
    assert await gate.champion() == "base"


async def test_a_specialist_that_is_not_wanted_answers_nobody(gate):
    await gate.hear(POET)

    said = await gate.hear(SpecialistUnwanted(name="poet"))
    again = await gate.hear(SpecialistUnwanted(name="poet"))

    assert said == [SpecialistRetired(name="poet")]
    assert isinstance(again[0], RequestRefused)
    assert await gate.arbiter.specialists() == []


@pytest.mark.parametrize(
    ("name", "model", "because"),
    [
        ("soma", "base-2", "SOMA itself answers to"),
        ("Poet!", "base-2", "is no name"),
        ("poet", "base", "answers as soma-v0 already"),
        ("taken", "base-2", "belongs to base-1"),
    ],
)
async def test_what_cannot_be_a_specialist_is_refused(gate, name, model, because):
    await gate.hear(SpecialistOffered(name="taken", model="base-1"))

    (said,) = await gate.hear(SpecialistOffered(name=name, model=model))

    assert because in said.because
