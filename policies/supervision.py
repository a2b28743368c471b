"""Who gets the machine, what fits into it, and when is a dead process started again?"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

# --- cores ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CoreShares:
    """Cores of the engine (chat) and of the trainer. Both have all of one core."""

    engine: tuple[int, ...]
    trainer: tuple[int, ...]


def share_cores(cores: Sequence[int], *, training: bool) -> CoreShares:
    """Part the cores so that chat does not feel the training.

    Idle, the engine has all. While training, it keeps the larger half: two busy OpenMP pools on
    the same cores slow each other down by far more than half.

    Raises:
        ValueError: there is no core.
    """
    everything = tuple(sorted(set(cores)))
    if not everything:
        raise ValueError("there must be at least one core to share")
    if not training:
        return CoreShares(engine=everything, trainer=())
    if len(everything) == 1:
        return CoreShares(engine=everything, trainer=everything)
    half = (len(everything) + 1) // 2
    return CoreShares(engine=everything[:half], trainer=everything[half:])


# --- restarts ------------------------------------------------------------------------------


class RestartRules(BaseModel):
    """How patient a supervisor is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    max_failures: int = 10


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `wait_s` seconds."""

    wait_s: float
    because: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it dead and say so."""

    because: str


def restart(failures: int, rules: RestartRules) -> Restart | GiveUp:
    """What to do about a process that ended by itself.

    What ran once will run again, and people wait for it. Only starts that fail are left more time
    each, and given up at last.

    Args:
        failures: starts in a row that failed, up to now; 0: it was ready before it ended.
        rules: how patient to be.
    """
    if failures > rules.max_failures:
        return GiveUp(
            f"{failures} starts in a row failed; see the logs and start it with 'soma up'"
        )
    if failures == 0:
        return Restart(0.0, "it was ready before")
    wait = min(rules.first_wait_s * 2 ** (failures - 1), rules.longest_wait_s)
    return Restart(wait, f"failed start {failures} in a row, waiting {wait:g} seconds")


# --- memory --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fits:
    """The job may start."""

    because: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The job would bring the machine out of memory."""

    because: str


def fits(*, predicted: int, available: int, reserve: int) -> Fits | TooLarge:
    """Whether a job of `predicted` bytes leaves `reserve` of the `available` bytes free."""
    numbers = (
        f"{_size(predicted)} predicted, {_size(available)} available, {_size(reserve)} kept free"
    )
    if predicted + reserve <= available:
        return Fits(numbers)
    missing = _size(predicted + reserve - available)
    return TooLarge(f"{missing} too little memory: {numbers}")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
