import os
import subprocess
import sys

import pytest

from soma_agents.app.processes import memory, processes
from soma_agents.cluster.names import actor_name, class_name

SLEEPER = "import sys; sys.stdin.read()"


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::ConversationHistory.ask", "conversation_history"),
        ("ray::Bus", "bus"),
        ("ray::ServeReplica:soma:Gateway", "gateway"),
        ("ray::RayTrainWorker.run", "trainer"),
        ("python -m soma_agents.training.ray_train request.json", "trainer"),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "ray gcs"),
        ("something else", "helper"),
    ],
)
def test_a_process_is_known_by_its_title(title, role):
    name, *words = title.split(" ")
    command = [name, "-c", SLEEPER, *words]
    with subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as child:
        found = {process["pid"]: process["role"] for process in processes(os.getpid())}
        child.stdin.close()

    assert found[child.pid] == role
    assert found[os.getpid()] == "supervisor"


def test_a_process_that_is_gone_has_no_children_and_no_memory():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()

    assert processes(child.pid) == []
    assert memory([child.pid]) == {}


def test_memory_counts_shared_pages_once():
    ((resident, proportional),) = memory([os.getpid()]).values()

    assert 0 < proportional <= resident


def test_class_names_and_actor_names_lead_to_each_other():
    assert class_name("auto_training_coordinator") == "AutoTrainingCoordinator"
    assert actor_name("AutoTrainingCoordinator") == "auto_training_coordinator"
