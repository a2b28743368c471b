import subprocess
import sys

import pytest
import ray

from soma_agents.cluster import head
from soma_agents.settings import load_settings
from tests.postgres_server import PostgresServer, programs


@pytest.fixture(autouse=True)
def _no_ray_unless_marked(request, monkeypatch):
    """A test that starts Ray by accident takes minutes and leaves processes behind."""
    if request.node.get_closest_marker("ray"):
        return

    def refuse(*_, **__):
        raise AssertionError("ray.init in a test that is not marked `ray`")

    monkeypatch.setattr(ray, "init", refuse)


HEAD = """
import sys
from soma_agents.cluster import head
from soma_agents.settings import Settings
print(head.start(Settings.model_validate_json(sys.argv[1])).address, flush=True)
sys.stdin.read()
head.stop()
"""


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    """A Ray of our own for the whole session, joined; the settings that join it."""
    settings = load_settings(tmp_path_factory.mktemp("soma"), environ={})
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, settings.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        address = process.stdout.readline().strip()
        cluster = settings.cluster.model_copy(update={"address": address})
        joined = settings.model_copy(update={"cluster": cluster})
        head.start(joined)
        yield joined
        head.stop()
        process.stdin.close()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for the whole session."""
    found = programs()
    if found is None:
        pytest.skip("no pg_ctl on PATH or below /usr/lib/postgresql: install PostgreSQL's server")
    server = PostgresServer(found)
    yield server
    server.remove()
