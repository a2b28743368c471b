import shutil
import socket
import stat

import pytest

from soma_agents.cluster import head
from soma_agents.settings import load_settings


@pytest.fixture
def settings(tmp_path):
    return load_settings(tmp_path, environ={})


def test_the_token_is_secret_and_stays_the_same(settings):
    file = head.token_file(settings)
    token = file.read_text()

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(token) == 64
    assert head.token_file(settings).read_text() == token


def test_a_token_that_others_could_read_is_made_anew(settings):
    file = head.token_file(settings)
    leaked = file.read_text()
    file.chmod(0o644)

    renewed = head.token_file(settings)

    assert renewed.read_text() != leaked
    assert stat.S_IMODE(renewed.stat().st_mode) == 0o600


def test_ray_refuses_to_start_without_the_token(settings):
    environment = head.environment(settings)

    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(head.token_file(settings))


def test_a_taken_port_is_replaced_by_a_free_one():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert head.port_or_free(port) not in {0, port}
    assert head.port_or_free(port) == port


def test_sockets_fit_their_limit_however_long_the_data_directory_is(tmp_path):
    settings = load_settings(tmp_path / ("long" * 40), environ={})

    root = head.session_root(settings)

    session = "/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"
    assert len(str(root) + session) <= 107
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700
    shutil.rmtree(root.parent)


def test_two_data_directories_never_share_their_sockets(tmp_path):
    roots = {
        head.session_root(load_settings(tmp_path / ("long" * 40) / name, environ={}))
        for name in ("a", "b")
    }

    assert len(roots) == 2
    for root in roots:
        shutil.rmtree(root.parent)


def test_old_sessions_are_forgotten_but_the_last_few(tmp_path):
    for day in range(1, 7):
        (tmp_path / f"session_2026-01-0{day}_00-00-00_000000_1" / "logs").mkdir(parents=True)

    head.forget_old_sessions(tmp_path)

    assert sorted(path.name[:18] for path in tmp_path.iterdir()) == [
        "session_2026-01-04",
        "session_2026-01-05",
        "session_2026-01-06",
    ]
