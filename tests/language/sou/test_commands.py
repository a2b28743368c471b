import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.cli import sou as commands
from soma_agents.language.sou.reader import SouFile
from soma_agents.language.sou.writer import Draft, Planned, write_sou
from tests.tiny_models import write_tiny_model


@pytest.fixture
def soma(tmp_path, monkeypatch):
    """Run `soma sou …` beside a tiny GGUF file and return what it printed."""
    app = typer.Typer()
    app.callback()(lambda: None)
    commands.add_to(app)
    write_tiny_model(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, ["sou", *arguments])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


def test_a_model_is_converted_inspected_verified_and_quantised(soma, tmp_path):
    assert "tiny.sou" in soma("convert", "tiny.gguf", "tiny.sou", "--type", "bf16")
    assert "is what was written" in soma("verify", "tiny.sou")
    soma("quantise", "tiny.sou", "small.sou", "--type", "q2")

    found = json.loads(soma("inspect", "small.sou", "--json", "--context", "64", "--streams", "2"))

    assert found["seal"] == SouFile(tmp_path / "small.sou").seal
    assert found["metadata"] == {"weights": "Q2"}
    assert found["memory"]["cache"] == 2 * 64 * found["memory"]["cache_per_token"]
    assert "cache, 2 x 64 tokens" in soma(
        "inspect", "small.sou", "--context", "64", "--streams", "2"
    )


def test_a_text_form_is_built_shown_and_spoken_under(soma, tmp_path):
    form = "FROM tiny.gguf\nPARAMETER max_tokens 3\nPERSONALITY warmth 1.0\nACL deny bob\nACL allow *\n"
    (tmp_path / "form").write_text(form)

    soma("build", "form", "built.sou", "--type", "F16")

    assert soma("inspect", "built.sou", "--text") == form.replace("tiny.gguf", "built.sou")
    assert soma("generate", "built.sou", "hi", "--user", "ann", "--tokens", "2").endswith("\n")
    with pytest.raises(InvalidError, match="does not let 'bob' use it"):
        soma("generate", "built.sou", "hi", "--user", "bob")


def test_a_model_is_exported_for_others_and_read_again(soma):
    soma("convert", "tiny.gguf", "tiny.sou", "--type", "F16")

    assert "out/Modelfile" in soma("export", "tiny.sou", "out", "--format", "gguf", "--type", "f16")
    assert "theirs/config.json" in soma("export", "tiny.sou", "theirs")

    soma("convert", "theirs", "again.sou")
    soma("convert", "out/model.gguf", "again.sou")
    soma("verify", "again.sou")


def test_a_file_that_lacks_a_tensor_is_not_inspected(soma, tmp_path, make_config):
    nothing = Draft(make_config(), {"norm.weight": Planned("F32", (64,), lambda: torch.ones(64))})
    write_sou(tmp_path / "hollow.sou", nothing)

    with pytest.raises(InvalidError, match="declares 2 layers and holds 1 tensors"):
        soma("inspect", "hollow.sou")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "hostile"),
        ("verify", "hostile"),
        ("quantise", "hostile", "x.sou"),
        ("convert", "hostile", "x.sou"),
        ("export", "hostile", "out"),
        ("build", "hostile", "x.sou"),
    ],
)
def test_every_command_refuses_what_is_no_model(soma, tmp_path, arguments):
    (tmp_path / "hostile").write_bytes(b"\x89SOU\r\n\x1a\n" + b"\xff" * 300)

    with pytest.raises((CorruptError, InvalidError), match="hostile"):
        soma(*arguments)
    with pytest.raises(NotFoundError, match="absent"):
        soma(*("absent" if word == "hostile" else word for word in arguments))

    assert not (tmp_path / "x.sou").exists()
