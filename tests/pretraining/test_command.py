import json

import pytest
from typer.testing import CliRunner

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.cli.main import app
from soma_agents.cli.pretraining import curve
from soma_agents.pretraining import planning

SHORT = ("--tokens", 1024, "--batch-tokens", 512, "--row", 64)


def soma(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, prose):
    """Words enough for the showcase's vocabulary."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    spelt = [f"{text} {text[::-1]} {text[::2]} {text[::3]}" for text in prose]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in spelt))
    return file


def test_a_corpus_becomes_a_model_that_writes(tmp_path, corpus):
    made = soma("pretrain", corpus, "--out", tmp_path / "run", "--json", *SHORT)
    told = json.loads(made.stdout)

    written = soma("generate", "The fox", "--model", told["model"], "--max-tokens", 5, "--json")

    assert told["ended"] == "finished"
    assert told["tokens"] == 1024
    assert told["parameters"] == 663_552
    assert told["bits_per_byte"] < 9
    assert 0 < json.loads(written.stdout)["tokens"] <= 5  # it may say that it has ended


def test_a_model_has_the_size_of_the_vocabulary_that_is_named(tmp_path, corpus):
    own = tmp_path / "tokenizer.json"
    soma("tokenize", corpus, "--method", "bpe", "--vocab-size", 320, "--save", own)

    made = soma("pretrain", corpus, "--out", tmp_path / "run", "--json", "--tokenizer", own, *SHORT)

    marked = 320 + 3  # the ends of documents and turns
    assert json.loads(made.stdout)["parameters"] == 663_552 - (576 - marked) * 128
    with pytest.raises(InvalidError, match="323 tokens, the model 576; say what the run began"):
        soma("pretrain", corpus, "--out", tmp_path / "run", *SHORT)


def test_people_see_a_curve_and_what_to_do_next(tmp_path, corpus):
    shown = soma("pretrain", corpus, "--out", tmp_path / "run", *SHORT)

    assert "663,552 parameters, finished after 1,024 tokens" in shown.stdout
    assert "soma generate" in shown.stdout


def test_a_plan_is_told_before_a_run():
    told = json.loads(soma("plan", "--preset", "v1", "--json").stdout)

    assert told["parameters"] == 41_418_752
    assert told["memory"] > 0
    assert told["tokens_per_second"] > 0


def test_a_plan_of_experts_and_a_long_context_tells_both_sizes():
    told = json.loads(
        soma("plan", "--preset", "v1", "--experts", 8, "--context", 32_768, "--json").stdout
    )

    assert told["parameters"] == 116_965_376
    assert told["active"] == 41_467_904


def test_a_plan_that_cannot_fit_is_told_before_it_is_refused(monkeypatch):
    small = planning.Machine(1e11, 1e10, memory=8 << 30, cores=2)
    monkeypatch.setattr(planning, "measured", lambda _: small)

    result = CliRunner().invoke(app, ["plan", "--depth", "28", "--json"])

    assert not json.loads(result.stdout)["fits"]
    assert isinstance(result.exception, InvalidError)
    assert "the nearest that fits" in str(result.exception)


def test_what_cannot_fit_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InvalidError, match=r"the nearest that fits|nothing of its kind fits"):
        soma("pretrain", tmp_path / "none", "--depth", 64)


def test_a_model_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(NotFoundError):
        soma("generate", "x", "--model", tmp_path)


def test_the_curve_has_a_column_for_each_stretch_of_the_run():
    assert curve([3.0, 2.0, 1.0]) == "█▅▁"
    assert len(curve([float(n) for n in range(100)])) <= 32
    assert curve([1.0, 1.0]) == "▁▁"


def test_a_plan_of_a_parted_model_is_of_each_worker():
    alone, parted = (
        json.loads(soma("plan", "--preset", "v1", *options, "--json").stdout)
        for options in ((), ("--workers", 2, "--shard"))
    )

    assert parted["here"] == 2
    assert parted["weights"] < alone["weights"]
    assert "of each of 2 workers" in soma("plan", "--workers", 2, "--shard").stdout


def test_a_model_cannot_be_parted_among_one(tmp_path, corpus):
    with pytest.raises(InvalidError, match="add --workers 2 or more"):
        soma("pretrain", corpus, "--out", tmp_path, "--shard")
