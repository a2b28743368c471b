"""The command line's way to a running SOMA."""

import json

import httpx2
import pytest
from typer.testing import CliRunner

from soma_agents.cli import client
from soma_agents.cli.main import app


@pytest.mark.parametrize("command", [["memory", "search", "cats"], ["train"], ["models"]])
def test_a_command_closes_its_connections_even_if_nobody_answers(tmp_path, monkeypatch, command):
    made = []

    class Noted(httpx2.Client):
        def __init__(self, **options):
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(client.httpx2, "Client", Noted)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "soma.json").write_text(json.dumps({"url": "http://127.0.0.1:9"}))

    result = CliRunner().invoke(app, ["--home", str(tmp_path), *command])

    assert result.exit_code
    assert [one.is_closed for one in made] == [True]
