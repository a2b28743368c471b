"""Backups are whole or none, for their owner only, and a restore counts once it was verified."""

import asyncio
import shutil
import stat

import pytest

from arbiters.errors import ConflictError, CorruptError, StorageFullError
from arbiters.events import FactForgotten
from arbiters.testing import enveloped
from bench.restore import drill
from policies.retention import Retention
from soma_agents.app import backup as backup_
from soma_agents.app.backup import back_up, restore
from soma_agents.app.verify import verify
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import load_settings
from soma_agents.storage.event_log import SqliteEventLog
from soma_agents.storage.files import write_manifest
from soma_agents.storage.identifiers import SystemClock
from soma_agents.storage.keys import ApiKeys


def not_running():
    raise AssertionError("SOMA does not run")


def forgotten(subject):
    return enveloped(FactForgotten(subject=subject), id=subject, idempotency=subject)


@pytest.fixture
async def settings(tmp_path):
    """A data directory with an event, a key, a model and settings; SOMA has stopped."""
    settings = load_settings(tmp_path / "home", environ={})
    soma = await LocalRuntime.start(settings)
    await soma.publisher.publish(FactForgotten(subject="nothing"))
    await soma.close()
    ApiKeys(settings.keys_file, SystemClock()).create("mira")
    (settings.home / "soma.toml").write_text("[server]\nport = 8400\n")
    model = settings.home / "models" / "lora-1"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"weights")
    write_manifest(model, {"model": "lora-1"})
    return settings


def test_a_restore_drill_finds_everything_acknowledged_and_the_same_state(tmp_path):
    counted = asyncio.run(drill(tmp_path, messages=160, seed=3))

    assert counted["events_compared"] >= counted["acknowledged_before"] > 300
    assert counted["acknowledged_during"] > 0
    assert counted["models"] == 2


async def test_what_was_backed_up_at_rest_is_restored(settings, tmp_path):
    made = await asyncio.to_thread(back_up, settings, tmp_path / "backup", not_running)

    found = restore(tmp_path / "backup", tmp_path / "new")

    assert all(finding["ok"] for finding in found)
    assert made["left_out"] == []
    again = load_settings(tmp_path / "new", environ={})
    assert again.server.port == 8400
    assert [key.name for key in ApiKeys(again.keys_file, SystemClock()).list()] == ["mira"]
    soma = await LocalRuntime.start(again)
    assert await soma.log.end() == 1
    await soma.close()


def test_a_backup_is_for_its_owner_only(settings, tmp_path):
    back_up(settings, tmp_path / "backup", not_running)
    restore(tmp_path / "backup", tmp_path / "new")

    for top in (tmp_path / "backup", tmp_path / "new"):
        for path in (top, *top.rglob("*")):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_backup_without_its_manifest_is_none(settings, tmp_path):
    back_up(settings, tmp_path / "backup", not_running)
    (tmp_path / "backup" / "manifest.json").unlink()

    with pytest.raises(CorruptError, match="never finished"):
        restore(tmp_path / "backup", tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_a_damaged_backup_is_not_restored(settings, tmp_path):
    back_up(settings, tmp_path / "backup", not_running)
    damaged = tmp_path / "backup" / "models" / "lora-1" / "manifest.json"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b" }")

    with pytest.raises(CorruptError, match="lora-1"):
        restore(tmp_path / "backup", tmp_path / "new")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "home"]


def test_nothing_is_overwritten(settings, tmp_path):
    back_up(settings, tmp_path / "backup", not_running)

    with pytest.raises(ConflictError, match="not empty"):
        restore(tmp_path / "backup", settings.home)
    with pytest.raises(ConflictError, match="there already"):
        back_up(settings, tmp_path / "backup", not_running)


def test_an_empty_directory_is_restored_into(settings, tmp_path):
    back_up(settings, tmp_path / "backup", not_running)
    (tmp_path / "new").mkdir()

    assert restore(tmp_path / "backup", tmp_path / "new")


def test_a_damaged_model_stays_behind_and_is_named(settings, tmp_path):
    (settings.home / "models" / "lora-1" / "weights").write_bytes(b"wEights")

    made = back_up(settings, tmp_path / "backup", not_running)

    assert made["left_out"] == ["models/lora-1"]
    assert all(finding["ok"] for finding in restore(tmp_path / "backup", tmp_path / "new"))


def test_a_damaged_log_is_not_backed_up(settings, tmp_path):
    content = bytearray(settings.log_file.read_bytes())
    content[content.index(b"nothing")] ^= 1
    settings.log_file.write_bytes(content)

    with pytest.raises(CorruptError, match="offset 1"):
        back_up(settings, tmp_path / "backup", not_running)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_full_disk_leaves_no_half_backup(settings, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)

    with pytest.raises(StorageFullError, match="backup"):
        back_up(settings, tmp_path / "backup", not_running)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_log_on_a_server_is_left_to_the_server_s_tools(settings, tmp_path, postgres):
    on_server = load_settings(settings.home, environ={"SOMA_LOG__URL": postgres.url()})
    settings.log_file.unlink()

    made = back_up(on_server, tmp_path / "backup", not_running)

    assert "pg_dump" in made["log"]
    assert not (tmp_path / "backup" / "log").exists()
    assert (tmp_path / "backup" / "state" / "evaluation.db").exists()


def test_a_running_soma_is_asked_for_copies_which_are_gone_afterwards(settings, tmp_path):
    lock = backup_.HomeLock(settings.home)
    copies = settings.home / "run" / "snapshots" / "one"

    def snapshot():
        for name in ("log", "state"):
            shutil.copytree(settings.home / name, copies / name)
        return copies

    made = back_up(settings, tmp_path / "backup", snapshot)
    lock.release()

    assert made["files"] > 5
    assert not copies.exists()


def test_verify_tells_of_everything_that_is_kept(settings):
    found = {finding["check"]: finding["found"] for finding in verify(settings)}

    assert found["event log"] == "1 events, chained"
    assert found["database user_profile"].startswith("has handled")
    assert found["model lora-1"] == "as its manifest says"
    assert found["keys"] == "1 keys"


async def test_the_archive_of_the_log_is_part_of_a_backup(settings, tmp_path):
    log = await SqliteEventLog.open(settings.log_file, Retention(keep=1, segment=2))
    await log.append([forgotten(f"s{n}") for n in range(8)])
    await asyncio.wait([log._archiver])
    await log.close()

    await asyncio.to_thread(back_up, settings, tmp_path / "backup", not_running)
    restore(tmp_path / "backup", tmp_path / "new")

    again = await SqliteEventLog.open(tmp_path / "new" / "log" / "events.db")
    subjects = [e.payload["subject"] for e in (await again.read(0)).envelopes]
    assert subjects == ["nothing", *(f"s{n}" for n in range(8))]
    await again.close()
    next((tmp_path / "backup" / "log" / "archive").iterdir()).unlink()
    with pytest.raises(CorruptError, match=r"archive.*missing"):
        restore(tmp_path / "backup", tmp_path / "newer")


async def test_no_backup_is_made_of_a_log_whose_archive_is_damaged(settings, tmp_path):
    log = await SqliteEventLog.open(settings.log_file, Retention(keep=1, segment=2))
    await log.append([forgotten(f"s{n}") for n in range(8)])
    await asyncio.wait([log._archiver])
    await log.close()
    segment = next((settings.home / "log" / "archive").iterdir())
    segment.write_bytes(segment.read_bytes()[:-3])

    with pytest.raises(CorruptError, match=rf"no backup was made.*{segment.name}"):
        await asyncio.to_thread(back_up, settings, tmp_path / "backup", not_running)

    assert not (tmp_path / "backup").exists()
