"""A round of 500 messages from trigger to verdict while a client keeps chatting.

`python -m bench.round` starts a SOMA of its own, chats with it idle, then imports enough dialogues
to trip the threshold with the chat's own messages, and chats on until the verdict. The figure is
the receipt's: from the event that started the round. Time a token = gap between streamed pieces.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import openai

from soma_agents.cli.client import Daemon
from soma_agents.cli.demo import mark_held_out
from soma_agents.cli.people import send_conversations
from soma_agents.runtime.importers import ImportedConversation, chatterbot_dialogues
from soma_agents.settings import load_settings

MESSAGES = 500
IDLE_SECONDS = 45
ROUND_SECONDS = 900
TARGET_SECONDS = 360
TARGET_RATIO = 2.0
PROMPTS = (
    "Tell me a short story about a lighthouse.",
    "Explain how bread rises.",
    "What should I pack for a week in the mountains?",
)


class Chatter(threading.Thread):
    """A client that keeps chatting and notes the gaps between pieces, in seconds."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self._done = threading.Event()
        self.gaps: list[float] = []
        self.failures = 0

    def run(self) -> None:
        """Ask one thing after the other until told to stop."""
        turn = 0
        while not self._done.is_set():
            try:
                self._ask(PROMPTS[turn % len(PROMPTS)])
            except openai.OpenAIError:
                self.failures += 1
            turn += 1

    def _ask(self, prompt: str) -> None:
        stream = self._client.chat.completions.create(
            model="soma",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=64,
            stream=True,
        )
        times = [time.perf_counter() for chunk in stream if chunk.choices]
        self.gaps += [after - before for before, after in pairwise(times)]

    def finish(self) -> dict[str, float]:
        """Stop and sum up."""
        self._done.set()
        self.join(timeout=120)
        return {
            "p50_ms": round(1e3 * median(self.gaps), 2),
            "p95_ms": round(1e3 * quantiles(self.gaps, n=20)[-1], 2),
            "tokens": len(self.gaps),
            "failures": self.failures,
        }


def enough(dialogues: list[ImportedConversation]) -> list[ImportedConversation]:
    """The first dialogues that hold at least `MESSAGES` messages."""
    taken: list[ImportedConversation] = []
    while sum(len(d.messages) for d in taken) < MESSAGES:
        taken.append(dialogues[len(taken)])
    return [mark_held_out(d) for d in taken]


def chat_for(url: str, seconds: float) -> dict[str, float]:
    """The times of an idle machine."""
    chatter = Chatter(url)
    chatter.start()
    time.sleep(seconds)
    return chatter.finish()


def wait_for_verdict(daemon: Daemon) -> dict[str, Any]:
    """The receipt of the round that the threshold starts."""
    deadline = time.monotonic() + ROUND_SECONDS
    while time.monotonic() < deadline:
        found = daemon.get("/api/receipts", limit=1)["data"]
        if found:
            return found[0]
        time.sleep(1)
    raise TimeoutError(f"no verdict within {ROUND_SECONDS} s")


def measure(daemon: Daemon) -> dict[str, Any]:
    """Idle, then the round."""
    idle = chat_for(daemon.url, IDLE_SECONDS)
    chatter = Chatter(daemon.url)
    chatter.start()
    sent = send_conversations(daemon, enough(chatterbot_dialogues()))
    receipt = wait_for_verdict(daemon)
    busy = chatter.finish()
    seconds = receipt["seconds"]
    ratio = busy["p95_ms"] / idle["p95_ms"]
    return {
        "ok": seconds <= TARGET_SECONDS and ratio <= TARGET_RATIO and busy["failures"] == 0,
        "figure": round(seconds, 1),
        "target": TARGET_SECONDS,
        "unit": "seconds from trigger to verdict",
        "p95_ratio": round(ratio, 2),
        "p95_ratio_target": TARGET_RATIO,
        "messages": sent["messages"],
        "idle": idle,
        "training": busy,
        "verdict": receipt["verdict"],
        "because": receipt["because"],
    }


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    """Run on a data directory of its own; the last line is the result."""
    soma = str(Path(sys.executable).with_name("soma"))
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as home:
        (Path(home) / "soma.toml").write_text(f"[training]\nmin_new_messages = {MESSAGES}\n")
        port = str(free_port())
        subprocess.run([soma, "up", "--home", home, "--port", port, "--detach"], check=True)
        try:
            with Daemon(load_settings(Path(home))) as daemon:
                result = measure(daemon)
        finally:
            subprocess.run([soma, "down", "--home", home], check=True)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
