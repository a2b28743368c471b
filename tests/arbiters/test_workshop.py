import asyncio

import pytest

from arbiters.errors import CorruptError
from arbiters.kernel.host import Host
from arbiters.model_events import (
    ComparisonFailed,
    ComparisonFinished,
    ComparisonRequested,
    TrainingFailed,
    TrainingFinished,
    TrainingProgressed,
    TrainingRequested,
)
from arbiters.testing import (
    FakeClock,
    FakeExaminer,
    FakeTrainer,
    MemoryEventLog,
    MemoryLedger,
    SequentialIds,
    enveloped,
    react,
)
from arbiters.workshop import Workshop

TRAIN = TrainingRequested(round="r1", dataset="d1", path="datasets/d1", parent="base")
COMPARE = ComparisonRequested(
    round="r1",
    experiment="exp-r1",
    champion="base",
    candidate="lora-1",
    dataset_path="datasets/d1",
    rules={},
)
FINISHED = TrainingFinished(
    round="r1",
    model="lora-1",
    path="models/lora-1",
    hyperparameters={"rank": 32},
    code_version="1",
    steps=2,
    tokens=100,
    seconds=3.0,
    train_loss=1.0,
    validation_loss=1.1,
)


def progressed(step):
    return TrainingProgressed(
        round="r1", step=step, steps=4, train_loss=2.0 / step, tokens_per_second=50.0
    )


def workshop(*training, comparing=()):
    return patient(FakeTrainer(*training), FakeExaminer(*comparing))


def patient(trainer, examiner, *, seconds=60.0):
    return Workshop(trainer=trainer, examiner=examiner, silence_s=seconds, comparison_s=seconds)


async def test_progress_and_result_of_a_training_are_passed_on():
    script = [progressed(1), progressed(2), FINISHED]

    assert await react(workshop(*script), TRAIN) == script


async def test_a_training_that_fails_says_so_once():
    failed = TrainingFailed(round="r1", because="the disk is full")

    assert await react(workshop(progressed(1), failed), TRAIN) == [progressed(1), failed]


@pytest.mark.parametrize("script", [[], [progressed(1)]])
async def test_a_trainer_that_stops_without_a_result_has_failed(script):
    *_, last = await react(workshop(*script), TRAIN)

    assert last == TrainingFailed(round="r1", because="the trainer stopped without a result")


@pytest.mark.parametrize(
    "result",
    [
        ComparisonFinished(
            round="r1", experiment="exp-r1", candidate="lora-1", observations=(), seconds=1.0
        ),
        ComparisonFailed(round="r1", experiment="exp-r1", candidate="lora-1", because="NaN"),
    ],
)
async def test_the_result_of_a_comparison_is_passed_on(result):
    assert await react(workshop(comparing=[result]), COMPARE) == [result]


async def test_what_nobody_expected_is_left_to_the_host():
    with pytest.raises(CorruptError):
        await react(workshop(comparing=[CorruptError("no magic number")]), COMPARE)


async def test_a_training_taken_up_again_says_its_result_though_it_says_less_than_before():
    log = MemoryEventLog()
    clock, ids = FakeClock(), SequentialIds()
    await log.append([enveloped(TRAIN)])
    ledger = MemoryLedger()

    class Interrupted(FakeTrainer):
        """Dies after two reports; resumes with the rest."""

        async def train(self, request):
            self.requests.append(request)
            if len(self.requests) == 1:
                yield progressed(1)
                yield progressed(2)
                raise OSError("killed")
            yield progressed(3)
            yield FINISHED

    arbiter = patient(Interrupted(), FakeExaminer())
    await Host(arbiter, log=log, ledger=ledger, clock=clock, ids=ids).drain()

    said = [(e.type, e.payload.get("step")) for e in (await log.read(1)).envelopes]
    assert said == [
        ("TrainingProgressed", 1),
        ("TrainingProgressed", 2),
        ("TrainingProgressed", 3),
        ("TrainingFinished", None),
    ]


class Hanging:
    """Says what it is given, then nothing any more."""

    def __init__(self, *said):
        self._said = said
        self.ended = False

    async def train(self, _):
        try:
            for said in self._said:
                yield said
            await asyncio.Event().wait()
        finally:
            self.ended = True

    async def compare(self, _):
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


async def test_a_training_that_says_nothing_any_more_is_ended_and_has_failed():
    trainer = Hanging(progressed(1))

    *_, last = await react(patient(trainer, FakeExaminer(), seconds=0.01), TRAIN)

    assert last == TrainingFailed(
        round="r1", because="the training said nothing for 0.01 seconds and was ended"
    )
    assert trainer.ended


async def test_a_comparison_that_does_not_end_is_ended_and_has_failed():
    examiner = Hanging()

    (said,) = await react(patient(FakeTrainer(), examiner, seconds=0.01), COMPARE)

    assert isinstance(said, ComparisonFailed)
    assert said.because == "the comparison was not over within 0.01 seconds"
    assert examiner.ended


@pytest.mark.parametrize("request_", [TRAIN, COMPARE])
async def test_a_timeout_of_their_own_is_left_to_the_host(request_):
    own = TimeoutError("a server did not answer")
    arbiter = patient(FakeTrainer(own), FakeExaminer(own))

    with pytest.raises(TimeoutError, match="a server"):
        await react(arbiter, request_)
