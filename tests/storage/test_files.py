import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from arbiters.errors import CorruptError, StorageFullError
from soma_agents.storage.files import (
    MANIFEST,
    make_directory,
    put_in_place,
    read_manifest,
    sha256_file,
    verify_manifest,
    write_atomic,
    write_manifest,
)


@pytest.fixture
def sealed(tmp_path):
    directory = tmp_path / "model"
    (directory / "deep").mkdir(parents=True)
    (directory / "weights").write_bytes(b"\x00\x01" * 1000)
    (directory / "deep" / "config.json").write_text("{}")
    write_manifest(directory, {"base": "b", "n": 1})
    return directory


def test_a_file_is_replaced_whole_and_for_its_owner_only(tmp_path):
    path = tmp_path / "keys.json"
    write_atomic(path, b"old")

    write_atomic(path, b"new")

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


def test_on_a_full_disk_the_old_content_stands(tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    write_atomic(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StorageFullError, match=r"keys\.json"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.fixture
def synced(monkeypatch):
    """What was synced, in order."""
    paths, fsync = [], os.fsync

    def note(handle):
        paths.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    return paths


def test_a_directory_is_made_with_every_name_on_the_way_to_it(tmp_path, synced):
    (tmp_path / "made").mkdir()  # by somebody who did not sync it

    make_directory(tmp_path / "made" / "by" / "us")

    assert stat.S_IMODE((tmp_path / "made" / "by" / "us").stat().st_mode) == 0o700
    assert {tmp_path, tmp_path / "made", tmp_path / "made" / "by"} <= set(synced)


def test_where_we_may_not_write_nothing_is_synced(tmp_path, synced, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)

    make_directory(tmp_path / "a" / "b")

    assert synced == [tmp_path / "a"]


def test_what_lies_deeper_is_sealed_with_its_name(tmp_path, synced):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "config.json").write_text("{}")

    write_manifest(tmp_path / "model", {})

    before_the_manifest = synced[: synced.index(tmp_path / "model" / f".{MANIFEST}.partial")]
    assert tmp_path / "model" / "deep" in before_the_manifest
    assert tmp_path / "model" / "deep" / "config.json" in before_the_manifest


def test_a_sealed_directory_gets_its_name_durably(sealed, synced):
    target = sealed.with_name("final")

    put_in_place(sealed, target)

    assert verify_manifest(target)["base"] == "b"
    assert not sealed.exists()
    assert synced[-1] == target.parent


def test_a_whole_directory_is_not_replaced_by_its_like(sealed):
    target = sealed.with_name("final")
    shutil.copytree(sealed, target)
    write_manifest(sealed, {"base": "another"})
    before = target.stat().st_ino

    put_in_place(sealed, target)

    assert target.stat().st_ino == before
    assert verify_manifest(target)["base"] == "b"
    assert not sealed.exists()


@pytest.mark.parametrize("content", [b"damaged", None])
def test_a_damaged_or_unfinished_directory_is_replaced(sealed, content):
    target = sealed.with_name("final")
    shutil.copytree(sealed, target)
    if content is None:
        (target / MANIFEST).unlink()
    else:
        (target / "weights").write_bytes(content)

    put_in_place(sealed, target)

    assert verify_manifest(target)["base"] == "b"


def test_the_digest_is_of_the_content(tmp_path):
    (tmp_path / "empty").write_bytes(b"")

    assert sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_a_manifest_holds_facts_and_every_file(sealed):
    manifest = verify_manifest(sealed)

    assert (manifest["base"], manifest["n"]) == ("b", 1)
    assert set(manifest["files"]) == {"weights", "deep/config.json"}
    assert manifest["files"]["weights"]["bytes"] == 2000
    assert read_manifest(sealed) == manifest


def test_a_flipped_bit_is_found_and_its_file_named(sealed):
    content = bytearray((sealed / "weights").read_bytes())
    content[500] ^= 1
    (sealed / "weights").write_bytes(content)

    with pytest.raises(CorruptError, match="weights is damaged"):
        verify_manifest(sealed)


def test_a_missing_file_is_named(sealed):
    (sealed / "weights").unlink()

    with pytest.raises(CorruptError, match="weights is missing"):
        verify_manifest(sealed)


def test_a_directory_without_a_manifest_was_never_finished(sealed):
    (sealed / MANIFEST).unlink()

    with pytest.raises(CorruptError, match="never finished"):
        verify_manifest(sealed)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 1}', '{"files": {"weights": "x"}}', '{"files": {"a"', "\0"]
)
def test_a_manifest_that_is_none_is_named(sealed, text):
    (sealed / MANIFEST).write_text(text)

    with pytest.raises(CorruptError, match=r"manifest\.json"):
        verify_manifest(sealed)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "deep/../../outside"])
def test_a_manifest_cannot_reach_outside_its_directory(sealed, name):
    (sealed.parent / "outside").write_text("x")
    entry = {"sha256": sha256_file(sealed.parent / "outside"), "bytes": 1}
    (sealed / MANIFEST).write_text(json.dumps({"files": {name: entry}}))

    with pytest.raises(CorruptError, match="outside"):
        verify_manifest(sealed)


def test_directories_on_the_way_are_their_owner_s_alone(tmp_path):
    make_directory(tmp_path / "a" / "b" / "c")

    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*")}
    assert modes | {stat.S_IMODE((tmp_path / "a").stat().st_mode)} == {0o700}


def test_a_file_called_manifest_further_down_is_sealed_like_any_other(tmp_path):
    (tmp_path / "deep").mkdir()
    inner = tmp_path / "deep" / "manifest.json"
    inner.write_text("{}")
    write_manifest(tmp_path, {})

    inner.write_text("[]")

    with pytest.raises(CorruptError, match="deep/manifest"):
        verify_manifest(tmp_path)


def test_what_a_killed_writer_left_of_a_manifest_is_not_sealed(tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    (tmp_path / f".{MANIFEST}.partial").write_bytes(b"half of i")

    write_manifest(tmp_path, {})

    assert set(verify_manifest(tmp_path)["files"]) == {"weights"}
