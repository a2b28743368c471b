"""A real SOMA that tests start, use, kill and stop by the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil

from soma_agents.app.lock import holder_of
from soma_agents.app.processes import processes

SOMA = Path(sys.executable).with_name("soma")
START_SECONDS = 240


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lives(process):
    """Zombies are dead: whether anybody reaps orphans is the machine's affair."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Daemon:
    """A real SOMA in a directory of its own, driven by the command line."""

    def __init__(self, home, **environ):
        self.home = home
        # It parts the cores itself, whatever the tests run under.
        inherited = {name: value for name, value in os.environ.items() if "OMP_" not in name}
        self.environ = inherited | environ
        self.port = free_port()
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def soma(self, *words, check=True, home=None):
        command = [SOMA, *words, "--home", home or self.home]
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, check=check, timeout=300
        )

    def up(self, *, check=True):
        return self.soma("up", "--detach", "--port", str(self.port), check=check)

    def down(self):
        self.soma("down")
        self.http.close()

    def status(self):
        return json.loads(self.soma("status", "--json").stdout)

    def processes(self):
        """As `soma status` lists them, without its start, which costs as much as a kill."""
        supervisor = holder_of(self.home)
        return processes(supervisor) if supervisor else []

    def pid(self, role):
        return next(p["pid"] for p in self.processes() if p["role"] == role)

    def kill(self, role):
        """Kill a process at once and return its pid."""
        pid = self.pid(role)
        os.kill(pid, signal.SIGKILL)
        return pid

    def until(self, condition, *, seconds=START_SECONDS):
        """Ask again until `condition()` holds; what it returned."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except (httpx2.HTTPError, StopIteration):
                pass
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.3)

    def say(self, text):
        body = {"messages": [{"role": "user", "content": text}], "model": "soma", "max_tokens": 4}
        return self.http.post("/v1/chat/completions", json=body)

    def kept(self):
        """What people wrote, according to the event log."""
        lines = self.http.get("/api/events", params={"types": "MessageReceived"}).text.splitlines()
        return [json.loads(line)["payload"]["content"] for line in lines]
