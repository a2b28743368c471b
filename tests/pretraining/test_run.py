import json
import math

import numpy as np
import pytest
import torch

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.language.engine import Engine
from soma_agents.language.model import load_model
from soma_agents.language.requests import GenerationRequest, Piece
from soma_agents.language.sampling import Sampling
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.pretraining import loop
from soma_agents.pretraining.loop import fit
from soma_agents.pretraining.packed import Packed
from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.run import METRICS, Hooks, Sources, pretrain
from soma_agents.pretraining.structure import plain_traits
from soma_agents.training.adamw import AdamW
from soma_agents.training.loop import DivergedError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, prose):
    folder = tmp_path_factory.mktemp("corpus")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in prose)
    (folder / "train.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def packed():
    """A cycle that can be learnt, in tokens of 2 bytes each."""
    cycle = np.tile(np.arange(20, dtype=np.uint16), 200)
    return Packed(cycle, cycle[:200], "cycle")


TRAITS = plain_traits([2] * 300)


def weights(learner):
    return torch.cat([p.detach().reshape(-1) for p in learner.parameters()])


def test_text_becomes_a_model_that_the_engine_goes_on_with(corpus, tmp_path, make_recipe):
    seen = []

    made = pretrain(
        Sources(corpus),
        make_recipe(tokens=128 * 40),
        tmp_path,
        hooks=Hooks(on_progress=seen.append),
    )

    assert seen[-1].loss < 0.6 * seen[0].loss
    assert made.outcome.bits_per_byte < 3
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    lineage = json.loads(SouCheckpoint(made.model).file.directory.metadata["lineage"])
    assert lineage["tokens"] == 128 * 40
    assert lineage["bits_per_byte"] == pytest.approx(made.outcome.bits_per_byte)
    assert Recipe.of(lineage["recipe"]) == make_recipe(tokens=128 * 40)
    assert load_model(str(made.model)).id.startswith("base-")


async def test_the_model_speaks_its_corpus_back(corpus, prose, tmp_path, make_recipe):
    made = pretrain(Sources(corpus), make_recipe(tokens=128 * 60), tmp_path)
    model = load_model(str(made.model), dtype=torch.float32)
    engine = Engine(model, slots=1, threads=1)
    engine.start()

    request = GenerationRequest(
        tuple(model.tokenizer.encode("The fox")), Sampling(temperature=0, max_tokens=12)
    )
    text = "".join([x.text async for x in engine.generate(request) if isinstance(x, Piece)])
    await engine.close()

    assert len(text.split()) > 2
    assert set(text.split()[:-1]) <= set(" ".join(prose).split())


def test_a_mixture_of_experts_learns_and_is_served_as_it_was_learnt(
    corpus, tmp_path, make_recipe, make_model
):
    model = make_model(experts=4, experts_per_token=2, d_ff=24)
    seen = []

    made = pretrain(
        Sources(corpus),
        make_recipe(model=model, tokens=128 * 40),
        tmp_path,
        hooks=Hooks(on_progress=seen.append),
    )

    assert seen[-1].loss < 0.6 * seen[0].loss
    served = load_model(str(made.model), dtype=torch.float32).transformer
    tokens = torch.arange(33)[None] * 7 % 300
    learner = made.outcome.learner
    learner.take({n: w.bfloat16().float() for n, w in learner.exported()})  # as in the file
    learner.refresh()
    logits = served(tokens[:, :-1]).transpose(1, 2)
    nats = torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none")
    torch.testing.assert_close(nats, learner.nats(tokens), atol=1e-4, rtol=1e-4)


def test_an_interrupted_run_ends_as_one_that_was_not(packed, tmp_path, make_recipe):
    recipe = make_recipe()
    whole = fit(recipe, packed, TRAITS, directory=tmp_path / "whole")

    def interrupt(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, packed, TRAITS, directory=tmp_path / "parts", on_progress=interrupt)
    steps = []
    parts = fit(
        recipe,
        packed,
        TRAITS,
        directory=tmp_path / "parts",
        on_progress=lambda progress: steps.append(progress.step),
    )

    assert steps[0] == 6
    assert torch.equal(weights(whole.learner), weights(parts.learner))


def test_a_step_that_was_cut_in_half_is_not_kept(packed, tmp_path, make_recipe, monkeypatch):
    recipe = make_recipe()
    whole = fit(recipe, packed, TRAITS, directory=tmp_path / "whole")
    real = AdamW.step
    taken = []

    def interrupt(self, *arguments):
        taken.append(1)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, packed, TRAITS, directory=tmp_path / "parts")
    parts = fit(recipe, packed, TRAITS, directory=tmp_path / "parts")

    assert torch.equal(weights(whole.learner), weights(parts.learner))


def test_a_run_stops_at_its_deadline_and_goes_on_from_there(packed, tmp_path, make_recipe):
    stopped = fit(make_recipe(), packed, TRAITS, directory=tmp_path, max_seconds=0)

    went_on = fit(make_recipe(), packed, TRAITS, directory=tmp_path)

    assert stopped.ended == "deadline"
    assert went_on.ended == "finished"
    assert went_on.step == 12


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(packed, tmp_path, make_recipe):
    def interrupt(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make_recipe(), packed, TRAITS, directory=tmp_path, on_progress=interrupt)
    steps = []

    fit(
        make_recipe(matrix_rate=0.03),
        packed,
        TRAITS,
        directory=tmp_path,
        on_progress=lambda progress: steps.append(progress.step),
    )

    assert steps[0] == 1


def test_a_loss_that_is_no_number_stops_and_names_the_batch(
    packed, tmp_path, make_recipe, monkeypatch
):
    real = loop.Learner.loss
    calls = []

    def break_down(self, *arguments):
        calls.append(1)
        loss, nats = real(self, *arguments)
        broken = math.nan if len(calls) == 6 else 1
        return loss * broken, nats * broken

    monkeypatch.setattr(loop.Learner, "loss", break_down)

    with pytest.raises(DivergedError, match=r"batch 3 of 12 \(rows .*loss nan"):
        fit(make_recipe(), packed, TRAITS, directory=tmp_path)

    monkeypatch.undo()
    steps = []
    after = fit(
        make_recipe(),
        packed,
        TRAITS,
        directory=tmp_path,
        on_progress=lambda progress: steps.append(progress.step),
    )
    assert steps[0] == 3
    assert math.isfinite(after.loss)


def test_a_run_that_learns_nothing_more_stops_early(packed, tmp_path, make_recipe):
    recipe = make_recipe(
        tokens=128 * 60, evaluations=60, patience=2, matrix_rate=1e-9, embedding_rate=1e-12
    )

    outcome = fit(recipe, packed, TRAITS, directory=tmp_path)

    assert outcome.ended == "early"
    assert outcome.step < 60


def test_small_batches_together_are_one_large_batch(packed, tmp_path, make_recipe):
    together = fit(make_recipe(micro_rows=4), packed, TRAITS, directory=tmp_path / "a")
    apart = fit(make_recipe(micro_rows=1), packed, TRAITS, directory=tmp_path / "b")

    assert apart.loss == pytest.approx(together.loss, rel=1e-3)


def test_a_corpus_below_a_batch_is_refused_with_what_would_fit(tmp_path, make_recipe):
    few = Packed(np.arange(70, dtype=np.uint16), np.empty(0, np.uint16), "few")

    with pytest.raises(InvalidError, match=r"70 tokens, a batch takes 129.*--batch-tokens 64"):
        fit(make_recipe(), few, TRAITS, directory=tmp_path)


def test_tokens_of_another_vocabulary_are_refused(tmp_path, make_recipe):
    strange = Packed(np.full(500, 7000, np.uint16), np.empty(0, np.uint16), "strange")

    with pytest.raises(InvalidError, match="token 7000 is beyond the model's 300"):
        fit(make_recipe(), strange, TRAITS, directory=tmp_path)


def test_a_trained_model_goes_on_with_another_corpus(corpus, tmp_path, make_recipe):
    base = pretrain(Sources(corpus), make_recipe(tokens=128 * 40), tmp_path / "base")
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "By the river."},
    ]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 40)
    seen = []

    made = pretrain(
        Sources(tmp_path / "chat.jsonl", held_out=corpus, base=base.model),
        make_recipe(tokens=128 * 2, matrix_rate=1e-9, embedding_rate=1e-9),
        tmp_path / "run",
        hooks=Hooks(on_progress=seen.append),
    )

    assert made.outcome.bits_per_byte < 1.2 * base.outcome.bits_per_byte
    chat = load_model(str(made.model)).tokenizer
    assert [chat.token_bytes(token) for token in chat.eos_ids] == [b"", b""]
    assert chat.encode("<|im_end|>")[0] == chat.eos_ids[0]


def test_a_model_of_other_sizes_is_not_gone_on_with(
    trained, corpus, tmp_path, make_recipe, make_model
):
    with pytest.raises(InvalidError, match="has other sizes than tiny"):
        pretrain(
            Sources(corpus, base=trained), make_recipe(model=make_model(layers=1)), tmp_path / "b"
        )


@pytest.fixture
def trained(corpus, tmp_path, make_recipe):
    return pretrain(Sources(corpus), make_recipe(tokens=128), tmp_path).model


def test_a_base_that_is_not_there_or_is_damaged_is_refused(trained, corpus, tmp_path, make_recipe):
    cut = tmp_path / "cut.sou"
    cut.write_bytes(trained.read_bytes()[:-100])

    with pytest.raises(NotFoundError):
        pretrain(Sources(corpus, base=tmp_path / "none.sou"), make_recipe(), tmp_path / "a")
    with pytest.raises(InvalidError, match=r"cut\.sou"):
        pretrain(Sources(corpus, base=cut), make_recipe(), tmp_path / "b")
