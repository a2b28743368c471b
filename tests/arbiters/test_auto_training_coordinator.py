import pytest

from arbiters.auto_training_coordinator import AutoTrainingCoordinator, round_of
from arbiters.events import (
    ArbiterFailed,
    ChatMessage,
    ClockTicked,
    ConversationImported,
    MessageReceived,
    ReplyGiven,
    Timings,
)
from arbiters.model_events import (
    CanaryStarted,
    DatasetExported,
    DatasetRefused,
    EvaluationFinished,
    RequestRefused,
    RoundFinished,
    RoundRequested,
    RoundStarted,
    TrainingFailed,
    TrainingFinished,
    TrainingProgressed,
    TrainingRequested,
)
from arbiters.testing import FakeClock, MemoryRoundStore, react

MESSAGE = MessageReceived(conversation="c1", message="m1", content="hello")
REPLY = ReplyGiven(
    conversation="c1",
    message="m2",
    inference="i1",
    content="hi",
    model="base",
    specialist="personal",
    config_hash="0",
    finish="stop",
    timings=Timings(first_token=0.1, total=0.2, prompt_tokens=3, completion_tokens=2),
)
NOW = RoundRequested(by="user")
WEEKLY = RoundRequested(by="schedule")
ROUND = "round-wish"
EXPORTED = DatasetExported(
    round=ROUND,
    dataset="d1",
    path="datasets/d1",
    train=30,
    validation=3,
    heldout=8,
    preferences=0,
    targets_by_kind={"imported": 41},
)
TRAINED = TrainingFinished(
    round=ROUND,
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
CANARY = CanaryStarted(round=ROUND, experiment="e1", champion="base", candidate="lora-1", share=0.2)


def imported(messages, **rest):
    return ConversationImported(
        conversation="c9",
        digest="d9",
        source="file",
        messages=(ChatMessage(role="user", content="hm"),) * messages,
        **rest,
    )


def evaluated(verdict="promoted", round_=ROUND):
    return EvaluationFinished(
        round=round_,
        experiment="e1",
        candidate="lora-1",
        verdict=verdict,
        because="it is better",
        seconds=5.0,
    )


def failed(event_type, key=ROUND):
    return ArbiterFailed(
        arbiter="workshop", event="e", event_type=event_type, key=key, attempts=5, error="OSError"
    )


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def coordinator(clock):
    return AutoTrainingCoordinator(
        rounds=MemoryRoundStore(), clock=clock, base="base", min_new_messages=4
    )


async def begin(coordinator, *events):
    """A round that a person asked for, and as far as these events bring it."""
    said = await react(coordinator, NOW, id="wish", offset=10)
    for event in events:
        said = await react(coordinator, event)
    return said


async def step_of(coordinator):
    round_ = (await coordinator.status())["round"]
    return round_ and round_["step"]


# --- counting and starting -----------------------------------------------------------------


async def test_messages_replies_and_imports_count_until_a_round_is_due(coordinator):
    assert await react(coordinator, MESSAGE, offset=1) == []
    assert await react(coordinator, REPLY, offset=2) == []

    said = await react(coordinator, imported(2), id="e3", offset=3)

    assert said == [
        RoundStarted(
            round=round_of("e3"),
            because="4 new messages, 4 start a round",
            upto=3,
            new_messages=4,
        )
    ]
    assert await step_of(coordinator) == "exporting"


async def test_a_single_message_can_be_the_last_that_was_missing(coordinator):
    await react(coordinator, imported(3), offset=1)

    (started,) = await react(coordinator, MESSAGE, id="e2", offset=2)

    assert started.round == round_of("e2")


async def test_conversations_that_are_held_out_do_not_count(coordinator):
    assert await react(coordinator, imported(9, held_out=True), offset=1) == []
    assert (await coordinator.status())["new_messages"] == 0


async def test_an_event_heard_twice_counts_once(coordinator):
    for _ in range(2):
        await react(coordinator, MESSAGE, offset=1)

    assert (await coordinator.status())["new_messages"] == 1


async def test_while_a_round_runs_messages_count_for_the_next(coordinator):
    await begin(coordinator)

    assert await react(coordinator, imported(9), offset=11) == []
    assert (await coordinator.status())["new_messages"] == 9

    await react(coordinator, evaluated())
    said = await react(coordinator, ClockTicked(at=FakeClock().now()), id="tick", offset=12)

    assert [type(event) for event in said] == [RoundStarted]
    assert said[0].upto == 12


async def test_the_pulse_starts_nothing_before_its_time(coordinator):
    assert await react(coordinator, ClockTicked(at=FakeClock().now())) == []


async def test_a_person_gets_a_round_at_once(coordinator):
    said = await begin(coordinator)

    assert said == [
        RoundStarted(
            round=ROUND,
            because="asked for by the user, 0 new messages",
            upto=10,
            new_messages=0,
        )
    ]


async def test_the_weekly_round_needs_something_new(coordinator):
    assert await react(coordinator, WEEKLY) == [
        RequestRefused(because="nothing new was said since the last round")
    ]

    await react(coordinator, MESSAGE, offset=1)

    assert [type(event) for event in await react(coordinator, WEEKLY)] == [RoundStarted]


async def test_a_second_round_is_refused_with_the_name_of_the_first(coordinator):
    await begin(coordinator)

    assert await react(coordinator, NOW, id="again") == [
        RequestRefused(because="round round-wish is still running; see it with 'soma status'")
    ]


# --- leading -------------------------------------------------------------------------------


async def test_a_dataset_is_trained_on_from_the_base(coordinator):
    said = await begin(coordinator, EXPORTED)

    assert said == [TrainingRequested(round=ROUND, dataset="d1", path="datasets/d1", parent="base")]
    assert await step_of(coordinator) == "training"


async def test_progress_is_a_share_of_the_steps(coordinator):
    await begin(
        coordinator,
        EXPORTED,
        TrainingProgressed(round=ROUND, step=3, steps=4, train_loss=1.0, tokens_per_second=9.0),
    )

    assert (await coordinator.status())["round"] == {
        "id": ROUND,
        "step": "training",
        "progress": 0.75,
    }


async def test_a_round_goes_through_training_evaluation_and_canary_to_its_verdict(
    coordinator, clock
):
    await begin(coordinator, EXPORTED)
    await react(coordinator, TRAINED)
    assert await step_of(coordinator) == "evaluating"
    await react(coordinator, CANARY)
    assert await step_of(coordinator) == "canary"
    clock.advance(seconds=90)

    said = await react(coordinator, evaluated())

    assert said == [
        RoundFinished(round=ROUND, verdict="promoted", because="it is better", seconds=90.0)
    ]
    assert await step_of(coordinator) is None


@pytest.mark.parametrize(
    "stray",
    [
        TrainingProgressed(round=ROUND, step=1, steps=4, train_loss=1.0, tokens_per_second=9.0),
        TRAINED,
        CANARY,
        TrainingFailed(round=ROUND, because="late"),
        evaluated(round_="another"),
        EXPORTED.model_copy(update={"round": "another"}),
        failed("TrainingRequested", key="another"),
        failed("TrainingProgressed"),
        failed("MessageReceived"),
    ],
)
async def test_a_step_that_is_not_next_or_of_another_round_changes_nothing(coordinator, stray):
    await begin(coordinator)

    assert await react(coordinator, stray) == []
    assert await step_of(coordinator) == "exporting"


async def test_a_step_heard_twice_changes_nothing(coordinator):
    await begin(coordinator, EXPORTED)

    assert await react(coordinator, EXPORTED) == []


async def test_nothing_is_led_when_no_round_runs(coordinator):
    assert await react(coordinator, evaluated()) == []


# --- ending --------------------------------------------------------------------------------


async def test_too_little_material_fails_the_round(coordinator):
    said = await begin(coordinator, DatasetRefused(round=ROUND, because="3 examples"))

    assert said == [RoundFinished(round=ROUND, verdict="failed", because="3 examples", seconds=0.0)]


async def test_a_failed_training_fails_the_round(coordinator):
    said = await begin(coordinator, EXPORTED, TrainingFailed(round=ROUND, because="disk full"))

    assert said == [RoundFinished(round=ROUND, verdict="failed", because="disk full", seconds=0.0)]


@pytest.mark.parametrize("event_type", ["RoundStarted", "TrainingRequested", "ComparisonFinished"])
async def test_a_step_among_the_dead_letters_fails_the_round(coordinator, event_type):
    (finished,) = await begin(coordinator, failed(event_type))

    assert finished.verdict == "failed"
    assert f"workshop could not handle {event_type} in 5 attempts: OSError" in finished.because


async def test_the_next_round_counts_from_the_material_of_the_last(coordinator):
    await react(coordinator, MESSAGE, offset=9)
    await begin(coordinator, DatasetRefused(round=ROUND, because="too little"))
    await react(coordinator, MESSAGE, offset=11)

    assert (await coordinator.status())["new_messages"] == 1


# --- questions -----------------------------------------------------------------------------


async def test_statistics_tell_what_was_said_and_what_came_of_the_rounds(coordinator):
    await react(coordinator, MESSAGE, offset=1)
    await begin(coordinator, evaluated("held"))

    assert await coordinator.statistics() == {
        "round": None,
        "new_messages": 0,
        "min_new_messages": 4,
        "because": "0 new messages, 4 start a round",
        "messages": 1,
        "rounds": 1,
        "verdicts": {"held": 1},
    }


async def test_rounds_are_listed_newest_first(coordinator, clock):
    await begin(coordinator, evaluated())
    clock.advance(hours=1)
    await react(coordinator, NOW, id="later", offset=20)

    assert [state.id for state in await coordinator.rounds()] == ["round-later", ROUND]
    assert [state.id for state in await coordinator.rounds(limit=1)] == ["round-later"]
