import math
import os
import random

import pytest
import torch

from arbiters.events import ChatMessage
from soma_agents.evaluation.suites import general
from soma_agents.language.model import load_model
from soma_agents.language.precision import fastest_format
from soma_agents.language.scoring import bits_per_byte
from soma_agents.settings import TrainingSettings
from soma_agents.training import loop
from soma_agents.training.corpus import Corpus, Pair, Sample, padded, pairs_of, samples_of
from soma_agents.training.loop import DivergedError, fit
from soma_agents.training.request import STOP
from tests.tiny_models import echoes, example, write_tiny_model


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return load_model(str(path), dtype=torch.float32)


def settings(**changes):
    base = {
        "rank": 8,
        "alpha": 16,
        "learning_rate": 1e-2,
        "batch_tokens": 256,
        "epochs": 4,
        "rehearsal_share": 0.2,
        "context": 128,
        "patience": 100,
    }
    return TrainingSettings(**(base | changes))


@pytest.fixture(scope="module")
def corpus(model):
    def replies(side, count):
        return samples_of(model.tokenizer, echoes(side, count), context=128)

    pairs = [example(f"p{n}", f"is it {n}?", f"yes, {n} it is", rejected="never") for n in range(3)]
    return Corpus(
        replies=replies("train", 16),
        preferences=pairs_of(model.tokenizer, pairs, context=128),
        rehearsal=samples_of(
            model.tokenizer, [example("r", "hello", "good day to you")], context=128
        ),
        validation=replies("validation", 3),
    )


def run(model, corpus, tmp_path, options=None, on_progress=lambda _: None):
    return fit(model, corpus, options or settings(), directory=tmp_path, on_progress=on_progress)


def weights(outcome):
    return torch.cat([p.detach().reshape(-1) for p in outcome.adapter.parameters()])


def test_one_batch_is_learnt_by_heart(model, tmp_path):
    (item,) = echoes("one", 1, reply="precisely this")
    corpus = Corpus(samples_of(model.tokenizer, [item], context=128))

    outcome = run(model, corpus, tmp_path, settings(epochs=120, learning_rate=3e-2))

    assert outcome.train_loss < 0.05
    (bits,) = bits_per_byte(
        model, [(item.messages[:-1], "precisely this")], adapter=outcome.adapter
    )
    assert bits < 0.2


def test_training_helps_on_validation_and_leaves_the_base_as_it_was(model, corpus, tmp_path):
    before = {name: p.clone() for name, p in model.transformer.named_parameters()}

    outcome = run(model, corpus, tmp_path)

    assert outcome.validation_loss < 0.8 * outcome.base_loss
    assert outcome.stopped == "finished"
    for name, parameter in model.transformer.named_parameters():
        assert torch.equal(parameter, before[name])


def test_an_interrupted_run_ends_with_the_same_weights(model, corpus, tmp_path):
    whole = run(model, corpus, tmp_path / "whole")
    part = tmp_path / "part"
    part.mkdir()

    def stop(progress):
        if progress.step in (3, 7):
            (part / STOP).touch()

    ends = []
    for _ in range(3):
        resumed = run(model, corpus, part, on_progress=stop)
        ends.append((resumed.stopped, resumed.step))
        (part / STOP).unlink(missing_ok=True)

    assert ends == [("stop file", 3), ("stop file", 7), ("finished", whole.step)]
    assert torch.equal(weights(resumed), weights(whole))
    assert (resumed.best_step, resumed.tokens) == (whole.best_step, whole.tokens)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(model, corpus, tmp_path):
    whole = run(model, corpus, tmp_path / "whole")
    part = tmp_path / "part"
    part.mkdir()
    for step in (3, 7):

        def stop(progress, step=step):
            if progress.step == step:
                (part / STOP).touch()

        run(model, corpus, part, on_progress=stop)
        (part / STOP).unlink()
    newest = max((part / "checkpoints").glob("step-*")) / "tensors.safetensors"
    os.truncate(newest, newest.stat().st_size // 2)
    steps = []

    resumed = run(model, corpus, part, on_progress=lambda progress: steps.append(progress.step))

    assert steps[0] == 4
    assert torch.equal(weights(resumed), weights(whole))


def test_a_checkpoint_of_other_material_is_not_resumed(model, corpus, tmp_path):
    def stop(progress):
        if progress.step == 3:
            (tmp_path / STOP).touch()

    run(model, corpus, tmp_path, on_progress=stop)
    (tmp_path / STOP).unlink()
    steps = []

    run(
        model,
        corpus,
        tmp_path,
        settings(seed=2),
        on_progress=lambda progress: steps.append(progress.step),
    )

    assert steps[0] == 1


def test_a_run_past_its_time_ends_with_what_it_has(model, corpus, tmp_path):
    outcome = run(model, corpus, tmp_path, settings(max_seconds=1e-9))

    assert outcome.stopped == "deadline"


def test_a_loss_that_is_no_number_ends_the_run_with_the_reason(model, corpus, tmp_path):
    with pytest.raises(DivergedError, match=r"step \d+ of \d+: loss (nan|inf).*learning_rate"):
        run(model, corpus, tmp_path, settings(learning_rate=1e30, clip=1e30, epochs=20))

    assert not list(tmp_path.rglob("adapter_model*"))


def test_training_stops_early_and_keeps_the_best(model, corpus, tmp_path, monkeypatch):
    losses = []
    look = loop._Run._validate
    monkeypatch.setattr(loop._Run, "_validate", lambda run: losses.append(look(run)) or losses[-1])
    unlike = Corpus(
        corpus.replies,
        validation=samples_of(
            model.tokenizer,
            [example("v", "is it 3?", "(((( ((( ((((((")],
            context=128,
        ),
    )

    outcome = run(model, unlike, tmp_path, settings(patience=2, epochs=8))

    base, *seen = losses
    assert outcome.stopped == "early"
    assert len(seen) < loop.VALIDATIONS
    assert outcome.base_loss == base < min(seen)
    assert outcome.validation_loss == min(seen)
    # A validation every so many steps: the best adapter is the one of its step.
    assert outcome.best_step * len(seen) == outcome.step * (seen.index(min(seen)) + 1)


@pytest.mark.model
def test_replies_shuffled_into_nonsense_do_not_beat_the_base(tmp_path):
    smollm2 = load_model("smollm2", dtype=getattr(torch, fastest_format()))
    dice = random.Random(1)
    held = [
        ([ChatMessage(role="user", content=item.question)], item.answer)
        for item in general()[20:26]
    ]
    words = [word for item in general()[40:60] for word in item.answer.split()]
    nonsense = [
        example(f"n{n}", " ".join(dice.sample(words, 4)), " ".join(dice.sample(words, 9)))
        for n in range(12)
    ]
    corpus = Corpus(samples_of(smollm2.tokenizer, nonsense, context=128))

    outcome = run(smollm2, corpus, tmp_path, settings(epochs=3, learning_rate=2e-3))

    before = bits_per_byte(smollm2, held)
    after = bits_per_byte(smollm2, held, adapter=outcome.adapter)
    assert sum(after) > sum(before)


def test_rehearsal_holds_the_model_to_the_base(model, corpus, tmp_path):
    @torch.no_grad()
    def drift(weight):
        with torch.enable_grad():
            options = settings(rehearsal_weight=weight, epochs=8)
            outcome = run(model, corpus, tmp_path / str(weight), options)
        inputs = padded(corpus.rehearsal)
        ours = model.transformer(inputs.tokens, lora=outcome.adapter).log_softmax(-1)
        base = model.transformer(inputs.tokens).log_softmax(-1)
        return float((base.exp() * (base - ours)).sum(-1).mean())

    assert drift(5.0) < 0.5 * drift(0.0)


def test_preferences_make_the_better_reply_likelier(model, tmp_path):
    pairs = [example("p", "tea?", "yes please", rejected="never again")]
    corpus = Corpus((), pairs_of(model.tokenizer, pairs, context=128))

    outcome = run(model, corpus, tmp_path, settings(epochs=20, dpo_beta=0.5))

    prompt = pairs[0].messages[:-1]
    replies = [(prompt, "yes please"), (prompt, "never again")]
    chosen, rejected = bits_per_byte(model, replies, adapter=outcome.adapter)
    base_chosen, base_rejected = bits_per_byte(model, replies)
    assert rejected - chosen > base_rejected - base_chosen + 1


def test_the_gradient_of_a_step_equals_that_of_the_plain_losses(model, corpus, tmp_path):
    options = settings(batch_tokens=100_000, epochs=1)
    this = loop._Run(model, corpus, options, directory=tmp_path, workers=loop.Alone())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for up in this._adapter.b.values():
            up.normal_(0, 0.1, generator=generator)
    this._adaptation.refresh()
    (step,) = this._plan
    for batch in step.batches:
        (this._loss(batch) / step.counts[batch.kind]).backward()
        this._adaptation.collect()
    ours = {name: p.grad.clone() for name, p in this._parameters.items()}

    this._adapter.zero_grad()
    plain_loss(model, this._adapter, step, options).backward()

    for name, parameter in this._parameters.items():
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-3, atol=1e-5), name


def plain_loss(model, adapter, step, options):
    """One sample at a time, whole logits, autograd all the way: slow and obvious."""
    total = torch.zeros(())
    for batch in step.batches:
        loss = torch.zeros(())
        gains = []
        for sample in batch.samples:
            mine, base = (plain_logprobs(model, sample, lora) for lora in (adapter, None))
            picked = torch.tensor(sample.tokens[sample.target :])[:, None]
            if batch.kind == "reply":
                loss = loss - mine.gather(-1, picked).sum()
            elif batch.kind == "rehearsal":
                loss = loss + (base.exp() * (base - mine)).sum(-1)[:: loop.REHEARSAL_STRIDE].sum()
            else:
                gains.append((mine - base).gather(-1, picked).sum())
        for chosen, rejected in zip(gains[::2], gains[1::2], strict=True):
            margin = options.dpo_beta * (chosen - rejected)
            loss = loss - torch.nn.functional.logsigmoid(margin)
        total = total + loss / step.counts[batch.kind]
    return total


def plain_logprobs(model, sample: Sample, lora):
    logits = model.transformer(torch.tensor(sample.tokens)[None], lora=lora)[0]
    return logits[sample.target - 1 : -1].log_softmax(-1)


def test_without_validation_the_last_adapter_counts(model, corpus, tmp_path):
    outcome = run(model, Corpus(corpus.replies), tmp_path, settings(epochs=1))

    assert math.isnan(outcome.validation_loss)
    assert outcome.best_step == outcome.step
    assert weights(outcome).abs().sum() > 0


def test_a_pair_counts_as_one_preference():
    sample = Sample((1, 2, 3), 1)

    assert Pair(sample, sample).chosen.targets == 2
