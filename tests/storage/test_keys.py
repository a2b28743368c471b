import stat

import pytest

from arbiters.errors import ConflictError, CorruptError, InvalidError, NotFoundError
from arbiters.testing import FakeClock
from soma_agents.storage.keys import ApiKeys


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "keys.json"


@pytest.fixture
def keys(path):
    return ApiKeys(path, FakeClock())


def test_without_a_file_there_are_no_keys(keys):
    assert keys.list() == ()
    assert keys.lookup("soma-anything") is None


def test_a_secret_finds_its_key(keys):
    secret = keys.create("laptop", "ada", "admin")
    keys.create("phone")

    found = keys.lookup(secret)

    assert (found.name, found.user, found.role, found.tenant) == ("laptop", "ada", "admin", "local")
    assert found.created_at == FakeClock().now()
    assert [(key.name, key.user, key.role) for key in keys.list()] == [
        ("laptop", "ada", "admin"),
        ("phone", "owner", "user"),
    ]


def test_secrets_are_long_different_and_never_stored(keys, path):
    secrets = {keys.create(f"key {n}") for n in range(5)}

    assert len(secrets) == 5
    assert all(secret.startswith("soma-") and len(secret) >= 48 for secret in secrets)
    assert not any(secret[5:] in path.read_text() for secret in secrets)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("wrong", ["", "soma-", "x", "soma-é", "\ud800", "soma-" + "A" * 43])
def test_another_secret_finds_nothing(keys, wrong):
    keys.create("laptop")

    assert keys.lookup(wrong) is None


def test_a_revoked_key_is_none_any_more(keys):
    secret = keys.create("laptop")

    keys.revoke("laptop")

    assert keys.lookup(secret) is None
    with pytest.raises(NotFoundError, match="'laptop'"):
        keys.revoke("laptop")


def test_changes_of_another_process_are_seen_at_once(keys, path):
    assert keys.list() == ()
    other = ApiKeys(path, FakeClock())

    secret = other.create("laptop")

    assert keys.lookup(secret).name == "laptop"
    other.revoke("laptop")
    assert keys.lookup(secret) is None


def test_a_name_is_given_once(keys):
    keys.create("laptop")

    with pytest.raises(ConflictError, match="'laptop'"):
        keys.create("laptop")


@pytest.mark.parametrize("wrong", [{"name": " "}, {"user": ""}, {"role": "root"}])
def test_a_key_without_a_name_user_or_known_role_is_refused(keys, wrong):
    with pytest.raises(InvalidError):
        keys.create(**({"name": "laptop"} | wrong))

    assert keys.list() == ()


@pytest.mark.parametrize("text", ["", "[]", '{"keys": [{}]}', '{"keys": 1}', "\0"])
def test_a_broken_file_lets_nobody_in(keys, path, text):
    secret = keys.create("laptop")
    path.write_text(text)

    with pytest.raises(CorruptError, match=r"keys\.json"):
        keys.lookup(secret)
