"""A pretrained model learns to converse: replies alone count, and it ends its turn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from arbiters.errors import InvalidError
from soma_agents.cli.main import app
from soma_agents.language.model import load_model
from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.language.source import base_id
from soma_agents.persona.voice import PERSONA
from soma_agents.pretraining.artifact import load_weights, save_model
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.loop import fit
from soma_agents.pretraining.packed import Packed
from soma_agents.pretraining.recipe import of_base
from soma_agents.pretraining.run import Hooks, Sources, pretrain
from soma_agents.pretraining.structure import plain_traits

COLOURS = {"fox": "red", "crane": "grey", "otter": "brown", "adder": "green", "vole": "black"}
TRAITS = plain_traits([2] * 300)
SHORT = ("--row", 32, "--batch-tokens", 128, "--tokens", 128)


def soma(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory, prose, make_recipe):
    """A model that has read, and never conversed."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "corpus.txt").write_text("\n\n".join(prose))
    return pretrain(
        Sources(folder / "corpus.txt"), make_recipe(tokens=128 * 40), folder / "run"
    ).model


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """Questions that have one short answer each."""
    file = tmp_path_factory.mktemp("dialogues") / "dialogues.jsonl"
    talks = [
        [
            {"role": "user", "content": f"What is the {animal} like?"},
            {"role": "assistant", "content": f"It is {colour}."},
        ]
        for animal, colour in COLOURS.items()
    ]
    for place, times in ((file, 30), (file.with_name("held-out.jsonl"), 4)):
        place.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks * times))
    return file


@pytest.fixture(scope="module")
def held_out(dialogues):
    """The same in another file."""
    return dialogues.with_name("held-out.jsonl")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, base, dialogues, held_out):
    """What the command line makes of the two."""
    out = tmp_path_factory.mktemp("tuned")
    told = soma(
        *("pretrain", dialogues, "--from", base, "--held-out", held_out, "--out", out, "--json"),
        *("--system", "Be brief.", "--row", 64, "--batch-tokens", 512, "--tokens", 512 * 120),
    )
    return json.loads(told.stdout)


def test_bits_per_byte_of_the_replies_fall_and_are_told_beside_those_before(tuned, base):
    assert tuned["bits_per_byte"] < 0.2 * tuned["bits_per_byte_before"]

    metadata = SouCheckpoint(Path(tuned["model"])).file.directory.metadata
    lineage = json.loads(metadata["lineage"])
    assert lineage["base"] == base_id(base)
    assert lineage["bits_per_byte_before"] == pytest.approx(tuned["bits_per_byte_before"])
    assert lineage["recipe"]["replies_only"]


@pytest.mark.parametrize("animal", COLOURS)
def test_it_answers_and_stops(tuned, animal):
    asked = ("generate", f"What is the {animal} like?", "--chat", "--temperature", 0)

    told = json.loads(soma(*asked, "--model", tuned["model"], "--json").stdout)

    assert told["text"] == f"It is {COLOURS[animal]}."
    assert told["reason"] == "stop"


def test_the_file_speaks_under_the_message_that_it_learnt_under(tuned):
    card = load_model(tuned["model"]).card

    assert card.system == "Be brief."


def test_only_what_is_to_be_learnt_counts(make_recipe):
    learner = Learner(make_recipe())
    learner.refresh()
    tokens = torch.arange(66).reshape(2, 33) * 7 % 300
    said = torch.arange(64).reshape(2, 32) % 10 >= 6

    with torch.no_grad():
        _, nats = learner.loss(tokens, said)
        _, whole = learner.loss(tokens)

    exact = learner.nats(tokens)
    assert float(nats) == pytest.approx(float(exact[said].sum()), rel=1e-4)
    assert float(whole) == pytest.approx(float(exact.sum()), rel=1e-4)


def test_a_run_learns_what_is_said_and_not_what_is_heard(tmp_path, make_recipe):
    place = np.arange(4000)
    edges = np.stack([place[::10], place[::10] + 6], -1).reshape(-1)
    noise = np.random.default_rng(1).integers(100, 250, len(place))
    tokens = np.where(place % 10 < 6, noise, place % 10).astype(np.uint16)
    packed = Packed(tokens, tokens[:400], "x", edges, edges[:80])

    recipe = make_recipe(tokens=128 * 40, replies_only=True)
    replies = fit(recipe, packed, TRAITS, directory=tmp_path / "a")
    whole = fit(recipe.but(replies_only=False), packed, TRAITS, directory=tmp_path / "b")

    assert replies.bits_per_byte < 0.6
    assert whole.bits_per_byte > 2


def test_a_step_without_a_reply_learns_nothing_and_breaks_nothing(tmp_path, make_recipe):
    tokens = (np.arange(4000) % 20).astype(np.uint16)
    edges = np.array([0, 3900])

    outcome = fit(
        make_recipe(replies_only=True),
        Packed(tokens, tokens[:200], "x", edges, np.empty(0, np.int64)),
        TRAITS,
        directory=tmp_path,
    )

    assert np.isfinite(outcome.loss)


def test_a_corpus_without_a_reply_is_refused(tmp_path, base):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "Hello? " * 300}]})
    )

    with pytest.raises(InvalidError, match="no assistant says anything"):
        soma("pretrain", tmp_path / "a.jsonl", "--from", base, "--out", tmp_path, *SHORT)


def test_a_base_that_was_good_enough_stays(tmp_path, base, dialogues, held_out):
    config, weights, _ = load_weights(base)
    ruin = of_base(config).but(
        row=32, batch_tokens=128, tokens=256, matrix_rate=5.0, embedding_rate=5.0
    )

    made = pretrain(Sources(dialogues, held_out=held_out, base=base), ruin, tmp_path / "run")

    kept = load_weights(made.model)[1]
    assert made.outcome.bits_per_byte == made.outcome.before
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())


def test_another_base_in_the_same_folder_begins_anew(tmp_path, base, dialogues):
    config, weights, vocabulary = load_weights(base)
    other = save_model(tmp_path / "other.sou", config, weights, vocabulary, {"made": "again"})
    recipe = of_base(config).but(row=32, batch_tokens=128, tokens=512)
    steps = []

    def go(model, stop):
        def hear(progress):
            steps.append(progress.step)
            if progress.step == stop:
                raise KeyboardInterrupt

        sources = Sources(dialogues, base=model)
        return pretrain(sources, recipe, tmp_path / "run", hooks=Hooks(on_progress=hear))

    with pytest.raises(KeyboardInterrupt):
        go(base, 2)
    with pytest.raises(KeyboardInterrupt):
        go(base, 3)
    go(other, None)

    assert steps == [1, 2, 3, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--preset", "v1"), "brings its own vocabulary and sizes"),
        (("--depth", "2"), "brings its own vocabulary and sizes"),
        (("--tokenizer", "tokenizer.json"), "brings its own vocabulary and sizes"),
    ],
)
def test_a_base_has_its_sizes_already(tmp_path, base, dialogues, options, said):
    with pytest.raises(InvalidError, match=said):
        soma("pretrain", dialogues, "--from", base, "--out", tmp_path, *options)


def test_a_system_message_needs_a_model_that_learns_to_converse(tmp_path, dialogues):
    with pytest.raises(InvalidError, match="--system belongs to --from"):
        soma("pretrain", dialogues, "--system", "Be.", "--out", tmp_path)


def test_a_model_whose_norms_have_scales_cannot_be_gone_on_with(tmp_path, base, dialogues):
    config, weights, vocabulary = load_weights(base)
    scaled = dict(weights) | {"blocks.0.mlp_norm.weight": torch.full((config.d_model,), 2.0)}
    foreign = save_model(tmp_path / "foreign.sou", config, scaled, vocabulary, {})

    with pytest.raises(InvalidError, match=r"'blocks.0.mlp_norm.weight' has scales"):
        soma("pretrain", dialogues, "--from", foreign, "--out", tmp_path, *SHORT)


def test_dialogues_begin_under_somas_voice_unless_said_otherwise(tmp_path, base, dialogues):
    arguments = ("pretrain", dialogues, "--from", base, "--out", tmp_path, "--json")

    told = json.loads(soma(*arguments, *SHORT).stdout)

    assert load_model(told["model"]).card.system == PERSONA
