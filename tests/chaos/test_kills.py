"""What must survive when something is killed in the middle of its work."""

import threading
from functools import partial

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow]


@pytest.fixture
def talking(daemon):
    """Talks from two threads; calling it stops and returns what was answered with 200."""
    answered, stop = [], threading.Event()

    def talk(who):
        count = 0
        while not stop.is_set():
            text = f"{who} says {count} of {id(answered)}"
            count += 1
            if daemon.say(text).status_code == 200:
                answered.append(text)

    threads = [threading.Thread(target=talk, args=(who,)) for who in ("Ann", "Ben")]
    for thread in threads:
        thread.start()
    daemon.until(lambda: len(answered) >= 2)

    def finish():
        seen = len(answered)
        daemon.until(lambda: len(answered) > seen + 1)
        stop.set()
        for thread in threads:
            thread.join()
        return answered

    yield finish
    stop.set()


@pytest.mark.parametrize("role", ["bus", "conversation_history"])
def test_a_killed_part_comes_back_and_nothing_that_was_answered_is_lost(daemon, talking, role):
    killed = daemon.kill(role)

    answered = talking()
    again = daemon.until(lambda: daemon.pid(role))

    assert again != killed
    assert set(answered) <= set(daemon.kept())
    statistics = partial(daemon.http.get, "/api/conversation/statistics")
    daemon.until(lambda: statistics().json()["user"] >= len(answered))


def test_a_killed_gateway_comes_back(daemon):
    killed = daemon.kill("gateway")

    daemon.until(lambda: daemon.say("Are you there?").status_code == 200)

    assert daemon.pid("gateway") != killed


def test_when_ray_s_head_is_killed_all_of_it_starts_anew_and_remembers(daemon):
    assert daemon.say("Before the fall").status_code == 200
    killed = daemon.kill("ray gcs")
    psutil.wait_procs([psutil.Process(killed)] if psutil.pid_exists(killed) else [], timeout=30)

    daemon.until(lambda: daemon.say("After the fall").status_code == 200)

    assert daemon.pid("ray gcs") != killed
    assert {"Before the fall", "After the fall"} <= set(daemon.kept())


def test_a_second_soma_in_the_same_directory_is_told_who_has_it(daemon):
    refused = daemon.up(check=False)

    assert refused.returncode == 1
    assert f"process {daemon.pid('supervisor')}" in refused.stderr


def test_a_second_soma_on_the_same_port_is_told_so(daemon, tmp_path):
    words = ["up", "--detach", "--port", str(daemon.port)]

    refused = daemon.soma(*words, check=False, home=tmp_path)

    assert refused.returncode == 1
    assert f"port {daemon.port}" in refused.stderr
