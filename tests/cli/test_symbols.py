import json

import pytest
from typer.testing import CliRunner

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.cli.main import app
from soma_agents.language.symbols.tokenise import METHODS

TEXT = "Mira's café [b]\r\n日本 👩🏽\u200d🚀 Mira's café\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


def run(*arguments, **options):
    found = CliRunner().invoke(app, ["tokenize", *map(str, arguments)], **options)
    if found.exception is not None:
        raise found.exception
    return found.stdout


def joined(answer):
    pieces = [
        p.encode() if isinstance(p, str) else bytes.fromhex(p["hex"]) for p in answer["pieces"]
    ]
    return b"".join(pieces[i] for i in answer["ids"])


@pytest.mark.parametrize("method", METHODS)
def test_the_json_of_every_method_holds_the_whole_text(file, method):
    learn = ("--vocab-size", 260) if method == "bpe" else ()

    answer = json.loads(run(file, "--method", method, *learn, "--json"))

    assert joined(answer) == TEXT.encode()
    assert answer["bytes"] == len(TEXT.encode())
    assert answer["tokens"] == len(answer["uid"]) == len(answer["index"])
    assert answer["next"][:-1] == answer["uid"][1:]


def test_standard_input_is_read_where_the_file_is_a_dash():
    answer = json.loads(run("-", "--json", input=TEXT))

    assert joined(answer) == TEXT.encode()


def test_the_table_shows_tokens_as_they_are(file):
    shown = run(file, "--method", "space", "--limit", 5, "--compress", "adaptive")

    assert "'[b]'" in shown
    assert "compression adaptive" in shown
    assert "and 9 more" in shown


def test_a_vocabulary_that_was_kept_gives_the_same_ids(file, tmp_path):
    kept = tmp_path / "tokenizer.json"
    first = run(file, "--method", "bpe", "--vocab-size", 260, "--save", kept, "--json")

    second = run(file, "--method", "bpe", "--vocabulary", kept, "--json")

    assert first == second


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "wrd"), "no method 'wrd'"),
        (("--method", "bpe"), "needs either --vocabulary"),
        (("--vocab-size", 300), "belong to --method bpe"),
        (("--seed", 0), "seed 0"),
        (("--compress", "gz"), "no compression 'gz'"),
        (("--method", "bpe", "--vocab-size", 9999), "more than these texts hold"),
    ],
)
def test_what_cannot_be_done_is_said(file, arguments, says):
    with pytest.raises(InvalidError, match=says):
        run(file, *arguments)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="absent"):
        run(tmp_path / "absent")
