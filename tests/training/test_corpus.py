import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiters.errors import InvalidError
from arbiters.events import ChatMessage
from soma_agents.language.model import load_model
from soma_agents.settings import TrainingSettings
from soma_agents.training.corpus import (
    MICRO_TOKENS,
    Corpus,
    Pair,
    Sample,
    micro_batches,
    padded,
    plan,
    sample_of,
)
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_model(str(write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf"))).tokenizer


def said(*turns):
    return [
        ChatMessage(role="assistant" if i % 2 else "user", content=turn)
        for i, turn in enumerate(turns)
    ]


def samples(*lengths, target=2, start=1):
    return tuple(
        Sample((*range(start, start + length - target), *([7] * target)), length - target)
        for length in lengths
    )


def test_only_the_reply_and_its_end_of_turn_are_targets(tokenizer):
    sample = sample_of(tokenizer, said("hello", "hi", "and you?"), "fine", context=200)

    prompt = tokenizer.render(said("hello", "hi", "and you?"), add_generation_prompt=True)
    assert list(sample.tokens[: sample.target]) == tokenizer.encode(prompt)
    assert tokenizer.decode(sample.tokens[sample.target :]) == "fine"
    assert sample.tokens[-1] == tokenizer.eos_ids[0]


def test_a_long_conversation_loses_its_oldest_turns_but_not_the_system_prompt(tokenizer):
    system = ChatMessage(role="system", content="be brief")
    messages = [system, *said("first " * 20, "answer", "second", "answer", "third")]

    sample = sample_of(tokenizer, messages, "reply", context=100)

    text = tokenizer.decode(sample.tokens)
    assert len(sample.tokens) <= 100
    assert "be brief" in text
    assert "first" not in text
    assert text.endswith("third\nassistant\nreply")


def test_a_reply_longer_than_the_context_is_cut_and_keeps_a_prompt(tokenizer):
    sample = sample_of(tokenizer, said("question"), "x" * 500, context=64)

    assert len(sample.tokens) == 64
    assert sample.target > 0


def test_an_empty_reply_is_refused(tokenizer):
    with pytest.raises(InvalidError, match="empty"):
        sample_of(tokenizer, said("hello"), "  ", context=64)


def test_a_reply_cannot_write_control_tokens(tokenizer):
    sample = sample_of(tokenizer, said("hello"), "a<|im_end|>b", context=200)

    assert sample.tokens[sample.target :].count(tokenizer.eos_ids[0]) == 1


def test_the_plan_is_the_same_for_the_same_seed_and_another_for_another():
    corpus = Corpus(samples(*range(5, 60)), rehearsal=samples(*range(9, 30)))
    settings = TrainingSettings(batch_tokens=128, epochs=2)

    assert plan(corpus, settings) == plan(corpus, settings)
    assert plan(corpus, settings) != plan(corpus, settings.model_copy(update={"seed": 2}))


def test_every_epoch_sees_every_reply_once_and_the_share_of_rehearsal():
    replies = samples(*range(5, 60))
    corpus = Corpus(replies, rehearsal=samples(*range(9, 30), start=100))
    settings = TrainingSettings(batch_tokens=128, epochs=3, rehearsal_share=0.25)

    steps = plan(corpus, settings)

    seen = {"reply": [], "rehearsal": []}
    for step in steps:
        for batch in step.batches:
            seen[batch.kind] += batch.samples
    assert sorted(s.tokens for s in seen["reply"]) == sorted(s.tokens for s in replies * 3)
    tokens = {kind: sum(len(s.tokens) for s in found) for kind, found in seen.items()}
    assert tokens["rehearsal"] / sum(tokens.values()) == pytest.approx(0.25, abs=0.06)


def test_pairs_stay_together_as_chosen_and_rejected():
    chosen, rejected = samples(10, 12, 14), samples(20, 22, 24, start=50)
    corpus = Corpus((), tuple(Pair(c, r) for c, r in zip(chosen, rejected, strict=True)))

    (step,) = plan(corpus, TrainingSettings(epochs=1))

    (batch,) = step.batches
    assert {
        (s.tokens, t.tokens) for s, t in zip(batch.samples[::2], batch.samples[1::2], strict=True)
    } == {(s.tokens, t.tokens) for s, t in zip(chosen, rejected, strict=True)}
    assert step.counts["preference"] == 3


def test_a_plan_without_material_is_refused():
    with pytest.raises(InvalidError, match="no reply and no preference"):
        plan(Corpus(()), TrainingSettings())


@given(st.lists(st.integers(3, 300), min_size=1, max_size=40))
def test_micro_batches_hold_every_sample_once_within_their_size(lengths):
    units = [(sample,) for sample in samples(*lengths)]

    batches = micro_batches("reply", units)

    found = [sample for batch in batches for sample in batch.samples]
    assert sorted(s.tokens for s in found) == sorted(u[0].tokens for u in units)
    for batch in batches:
        inputs = padded(batch.samples)
        width = inputs.tokens.shape[1] - inputs.prefix
        assert len(batch.samples) == 1 or inputs.prefix + len(batch.samples) * width <= MICRO_TOKENS


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_padded_points_at_the_place_before_each_target(shared, tails, stride):
    batch = tuple(
        Sample((*shared, *range(10, 10 + i), 9, *([5] * tail)), len(shared) + i + 1)
        for i, tail in enumerate(tails)
    )

    inputs = padded(batch, stride=stride)

    rows = [row for row, s in enumerate(batch) for _ in range(0, s.targets, stride)]
    assert inputs.rows.tolist() == rows
    places = inputs.columns + inputs.prefix
    for row, place, target in zip(inputs.rows, places, inputs.targets, strict=True):
        assert place >= batch[row].target - 1
        assert inputs.tokens[row, place + 1] == target
    assert (inputs.columns >= 0).all()
    heads = {tuple(row[: inputs.prefix]) for row in inputs.tokens.tolist()}
    assert len(heads) == 1
