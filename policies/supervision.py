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
    forget_s: float = 600.0
    """A process that lived so long has a clean record again."""
    max_deaths: int = 10


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `wait_s` seconds."""

    wait_s: float
    because: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it dead and say so."""

    because: str


def restart(deaths: Sequence[float], now: float, rules: RestartRules) -> Restart | GiveUp:
    """What to do about a process that died, the newest death included in `deaths`.

    The wait doubles with every death that is not forgotten yet.

    Args:
        deaths: seconds of a clock that never goes back and is never set.
        now: the same.
        rules: how patient to be.
    """
    recent = sum(now - death < rules.forget_s for death in deaths)
    if recent > rules.max_deaths:
        return GiveUp(
            f"it died {recent} times in {rules.forget_s:g} seconds; "
            "see the logs and start it with 'soma up'"
        )
    wait = min(rules.first_wait_s * 2 ** max(recent - 1, 0), rules.longest_wait_s)
    return Restart(wait, f"death {recent} in {rules.forget_s:g} seconds, waiting {wait:g} seconds")


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
