import os
import subprocess
import sys

import pytest

from arbiters.errors import ConflictError
from soma_agents.app.lock import HomeLock, holder_of


def test_a_second_lock_is_refused_and_says_which_process_has_the_first(tmp_path):
    lock = HomeLock(tmp_path)

    with pytest.raises(ConflictError, match=rf"process {os.getpid()}.*soma down"):
        HomeLock(tmp_path)
    assert holder_of(tmp_path) == os.getpid()
    lock.release()


def test_a_released_lock_can_be_taken_again(tmp_path):
    HomeLock(tmp_path).release()

    assert holder_of(tmp_path) is None
    HomeLock(tmp_path).release()


def test_nobody_holds_a_directory_that_was_never_used(tmp_path):
    assert holder_of(tmp_path / "nothing") is None


def test_the_lock_outlives_its_owner_while_a_child_has_it(tmp_path):
    lock = HomeLock(tmp_path)
    wait = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=[lock.descriptor]) as child:
        lock.release()

        with pytest.raises(ConflictError):
            HomeLock(tmp_path)
        child.stdin.close()
    HomeLock(tmp_path).release()
