"""What a running SOMA tells others of itself: `$SOMA_HOME/run/soma.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a running SOMA is. `ray` is the address of the head, `dashboard` a URL.

    Both are empty on the local runtime.
    """

    pid: int
    url: str
    ready: bool
    ray: str = ""
    dashboard: str = ""


def state_file(home: Path) -> Path:
    """Where the state stands while SOMA runs."""
    return home / "run" / "soma.json"


def write_state(home: Path, state: RunState) -> None:
    """Replace the state at once, so that no reader ever sees half of it."""
    file = state_file(home)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(state)))
    draft.replace(file)


def read_state(home: Path) -> RunState | None:
    """The state, or None when no SOMA runs."""
    try:
        return RunState(**json.loads(state_file(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def forget_state(home: Path) -> None:
    """Nothing runs any more."""
    state_file(home).unlink(missing_ok=True)
