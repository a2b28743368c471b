import socket

import pytest

from soma_agents.app.doctor import doctor
from soma_agents.app.lock import HomeLock
from soma_agents.settings import load_settings
from soma_agents.storage.event_log import SqliteEventLog


def look(home, **environ):
    return {f["check"]: f for f in doctor(load_settings(home, environ=environ))}


def test_every_finding_that_is_not_well_has_a_way_out(tmp_path):
    found = look(tmp_path, SOMA_ENGINE__MODEL="/nowhere.gguf")

    assert all(finding["ok"] or finding["way_out"] for finding in found.values())
    assert not found["model"]["ok"]
    assert "/nowhere.gguf" in found["model"]["way_out"]


def test_the_model_that_was_installed_is_whole(tmp_path):
    assert look(tmp_path)["model"]["ok"]


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        finding = look(tmp_path, SOMA_SERVER__PORT=str(port))["port"]

    assert not finding["ok"]
    assert f"port {port}" in finding["way_out"]


def test_a_token_that_others_can_read_is_found(tmp_path):
    token = tmp_path / "run" / "ray_token"
    token.parent.mkdir()
    token.write_text("x")
    token.chmod(0o644)

    assert not look(tmp_path)["Ray's token"]["ok"]


@pytest.mark.parametrize("broken", [False, True])
async def test_every_database_is_read_to_its_last_page(tmp_path, broken):
    settings = load_settings(tmp_path, environ={})
    log = await SqliteEventLog.open(settings.log_file)
    await log.close()
    if broken:
        damaged = bytearray(settings.log_file.read_bytes())
        damaged[4096:4200] = b"\xff" * 104
        settings.log_file.write_bytes(damaged)

    assert look(tmp_path)["database events"]["ok"] is not broken


async def test_databases_in_use_are_left_alone(tmp_path):
    lock = HomeLock(tmp_path)

    found = look(tmp_path)

    assert "not checked" in found["databases"]["found"]
    assert "port" not in found
    lock.release()


def test_the_server_of_the_log_answers(tmp_path, postgres):
    found = look(tmp_path, SOMA_LOG__URL=postgres.url())["event log"]

    assert found["ok"]
    assert found["found"].startswith("PostgreSQL ")
    assert found["found"].endswith(" at postgresql:///postgres, 0 events")


def test_a_server_of_the_log_that_does_not_answer_is_named(tmp_path):
    found = look(tmp_path, SOMA_LOG__URL="postgresql://soma@127.0.0.1:1/soma")["event log"]

    assert not found["ok"]
    assert "postgresql://127.0.0.1:1/soma is not there" in found["way_out"]
