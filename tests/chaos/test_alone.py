"""The supervisor over SOMA in one process: quick to start, so the rude kills are tried on it."""

import os
import signal

import psutil
import pytest

from tests.daemon import Daemon, lives
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture
def alone(tmp_path):
    # Who supervises does not care how large the model is.
    model = write_tiny_model(tmp_path / "tiny.gguf")
    daemon = Daemon(tmp_path / "home", SOMA_CLUSTER__RUNTIME="local", SOMA_ENGINE__MODEL=str(model))
    daemon.up()
    yield daemon
    everything = [psutil.Process(process["pid"]) for process in daemon.processes()]
    daemon.down()
    assert [process for process in everything if lives(process)] == []


def test_a_killed_keeper_is_started_anew_and_a_killed_supervisor_leaves_nothing_behind(alone):
    assert alone.say("Remember the heron").status_code == 200
    killed = alone.kill("keeper")

    alone.until(lambda: alone.say("Are you back?").status_code == 200)

    assert alone.pid("keeper") != killed
    keeper = psutil.Process(alone.pid("keeper"))

    os.kill(alone.pid("supervisor"), signal.SIGKILL)
    alone.up()  # waits until what the dead supervisor left has drained

    assert not lives(keeper)
    assert {"Remember the heron", "Are you back?"} <= set(alone.kept())
