import json

import pytest
from typer.testing import CliRunner

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.cli.main import app


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        f"The {animal} eats {food} near the barn."
        for animal in ("cow", "horse", "sheep", "goat")
        for food in ("grass", "hay", "corn", "clover")
    ]
    (folder / "farm.txt").write_text("\n\n".join(lines * 20))
    turns = [{"role": "user", "content": "Where is the moon tonight?"}]
    turns += [{"role": "assistant", "content": "The moon is in the sky tonight."}]
    (folder / "talk.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 5)
    return folder


def soma(*arguments):
    result = CliRunner().invoke(app, ["embed", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "farm.embed"
    told = soma("train", corpus, "--out", path, "--dim", 16, "--min-count", 2, "--json")
    return path, json.loads(told)


def test_training_says_what_it_made(model):
    path, told = model

    assert told["method"] == "hybrid"
    assert told["dim"] == 1024 + 16 + 80
    assert told["bytes"] == path.stat().st_size
    assert told["model"] == str(path)


def test_the_marks_of_a_conversation_are_no_words(model):
    path, _ = model

    told = json.loads(soma("query", path, "moon", "--top", 100, "--json"))

    words = {hit["text"] for hit in told["nearest"]}
    assert "tonight" in words
    assert not words & {"im_start", "im", "user", "assistant", "moon"}


def test_the_nearest_words_and_lines_are_shown(model, tmp_path):
    path, _ = model
    notes = tmp_path / "notes.txt"
    notes.write_text("The goat eats clover.\n\nWhere is the moon?\nNothing else.\n")

    words = json.loads(soma("query", path, "horse", "--top", 3, "--json"))["nearest"]
    lines = json.loads(soma("query", path, "goats and clover", "--near", notes, "--json"))
    table = soma("query", path, "horse")

    assert len(words) == 3
    assert words[0]["cosine"] >= words[1]["cosine"] >= words[2]["cosine"]
    assert lines["nearest"][0]["text"] == "The goat eats clover."
    assert len(lines["nearest"]) == 3
    assert "cosine" in table


@pytest.mark.parametrize("method", ["feature", "hash", "semantic"])
def test_every_method_is_trained_and_asked(corpus, tmp_path, method):
    path = tmp_path / "made"

    told = soma("train", corpus, "--out", path, "--method", method)

    assert f"method {method}" in told
    assert len(json.loads(soma("query", path, "cow", "--json"))["nearest"]) > 5


@pytest.mark.parametrize(
    ("content", "name", "options", "message"),
    [
        (b"", "a.txt", (), "corpus is empty"),
        (b"few words", "a.txt", (), "0 of 2 words"),
        (b"\x7fELF\xff\xfe\x00", "a.txt", (), "no UTF-8"),
        (b"\0\0\0", "a.txt", (), "NUL"),
        (b"\1\0\2\0", "a.bin", (), "token ids"),
        (b"words", "a.exe", (), "unknown kind"),
        (b"words", "a.txt", ("--method", "glove"), "no method 'glove'"),
        (b"words", "a.txt", ("--vocabulary", "1"), "--vocabulary 1"),
    ],
)
def test_a_bad_corpus_or_option_is_refused(tmp_path, content, name, options, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InvalidError, match=message):
        soma("train", tmp_path / name, "--out", tmp_path / "made", *options)

    assert not (tmp_path / "made").exists()


def test_missing_files_are_named(tmp_path, model):
    with pytest.raises(NotFoundError, match="nowhere"):
        soma("train", tmp_path / "nowhere", "--out", tmp_path / "made")
    with pytest.raises(NotFoundError, match="nowhere"):
        soma("query", tmp_path / "nowhere", "cow")
    with pytest.raises(NotFoundError, match="nowhere"):
        soma("query", model[0], "cow", "--near", tmp_path / "nowhere")
    with pytest.raises(InvalidError, match="folder that is there"):
        soma("train", tmp_path, "--out", tmp_path / "no" / "made")
