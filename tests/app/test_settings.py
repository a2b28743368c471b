import tomllib

import pytest

from arbiters.errors import InvalidError
from deploy import settings as generator
from soma_agents.settings import Settings, load_settings


def test_the_shipped_file_lists_every_setting_with_its_default(tmp_path):
    shipped = generator.TARGET.read_text()

    assert shipped == generator.render()
    assert Settings(**tomllib.loads(shipped), home=tmp_path) == Settings(home=tmp_path)


def test_the_file_of_the_data_directory_is_read_and_the_environment_overrides_it(tmp_path):
    (tmp_path / "soma.toml").write_text("[server]\nport = 9000\nmax_waiting = 3\n")

    settings = load_settings(tmp_path, environ={"SOMA_SERVER__PORT": "9001"})

    assert (settings.server.port, settings.server.max_waiting) == (9001, 3)


def test_an_override_wins_over_everything(tmp_path):
    settings = load_settings(
        tmp_path, environ={"SOMA_SERVER__PORT": "9001"}, overrides={"server": {"port": 9002}}
    )

    assert settings.server.port == 9002


def test_an_unknown_setting_is_refused_with_the_nearest_valid_name(tmp_path):
    (tmp_path / "soma.toml").write_text("[training]\nmin_new_mesages = 3\n")

    with pytest.raises(
        InvalidError, match=r"'training.min_new_mesages'.*'training.min_new_messages'"
    ):
        load_settings(tmp_path, environ={})


def test_a_wrong_value_is_refused_with_its_name_and_value(tmp_path):
    with pytest.raises(InvalidError, match=r"server.port = '99999'"):
        load_settings(tmp_path, environ={"SOMA_SERVER__PORT": "99999"})


def test_a_broken_file_is_refused_by_name(tmp_path):
    (tmp_path / "soma.toml").write_text("[server\n")

    with pytest.raises(InvalidError, match=r"soma.toml is not TOML"):
        load_settings(tmp_path, environ={})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://soma:hush@10.0.0.1/soma",
        "postgresql://10.0.0.1/soma?user=soma&password=hush",
        "mysql://soma:hush@10.0.0.1/soma",
    ],
)
def test_a_password_in_a_setting_is_refused_and_not_repeated(tmp_path, url):
    with pytest.raises(InvalidError, match=r"setting log\.url: ") as refused:
        load_settings(tmp_path, environ={"SOMA_LOG__URL": url})

    assert "hush" not in str(refused.value)
