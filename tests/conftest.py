import os
import subprocess
import sys

import psutil
import pytest
import ray

from soma_agents.cluster import head
from soma_agents.settings import load_settings
from tests.daemon import Daemon, lives
from tests.postgres_server import PostgresServer, programs


def pytest_configure(config):
    """Tests compare bit for bit: GPUs are hidden from all but those that ask for one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _no_ray_unless_marked(request, monkeypatch):
    """A test that starts Ray by accident takes minutes and leaves processes behind."""
    if request.node.get_closest_marker("ray"):
        return

    def refuse(*_, **__):
        raise AssertionError("ray.init in a test that is not marked `ray`")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(autouse=True)
def _no_gpu_test_without_one(request):
    if not request.node.get_closest_marker("gpu"):
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU, or hidden from all tests but `pytest -m gpu`")


@pytest.fixture
def pretended():
    """A device that refuses what lies on the CPU, as a GPU does."""
    from tests.pretended_device import THERE, PretendedDevice

    with PretendedDevice():
        yield THERE


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


SMALL = {
    "TRAINING__RANK": "8",
    "TRAINING__ALPHA": "16",
    "TRAINING__MAX_STEPS": "10",
    "TRAINING__LEARNING_RATE": "1e-3",
    "TRAINING__BATCH_TOKENS": "512",
    "TRAINING__CHECKPOINT_EVERY_S": "1",
    "EVALUATION__MAX_ITEMS": "80",
    "EVALUATION__TRIGGER_WORDS": "50",
}
"""A round in about a minute: the real model, few steps, few items and words."""


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    """One SOMA on Ray for the whole session; at the end nothing of it must be left."""
    small = {f"SOMA_{name}": value for name, value in SMALL.items()}
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), **small)
    daemon.up()
    everything = [psutil.Process(process["pid"]) for process in daemon.processes()]
    yield daemon
    everything += [psutil.Process(process["pid"]) for process in daemon.processes()]
    daemon.down()
    assert [process for process in everything if lives(process)] == []


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for the whole session."""
    found = programs()
    if found is None:
        pytest.skip("no pg_ctl on PATH or below /usr/lib/postgresql: install PostgreSQL's server")
    server = PostgresServer(found)
    yield server
    server.remove()
