"""How the learning rate moves over a training run."""

import math
from collections.abc import Callable
from typing import Literal

from arbiters.errors import InvalidError

WARM_UP_SHARE = 0.06
"""Share of the steps in which the rate rises."""

FLOOR = 0.1
"""What is left of the peak at the last step."""

CYCLES = 4
"""Triangles of the cyclic schedule."""

Schedule = Literal["cosine", "warm-up", "one-cycle", "cyclic", "polynomial", "warm-up-stable-decay"]


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """The rate of optimiser step `step` (from 0) of `steps`: linear warm-up, then a half cosine."""
    return peak * share("cosine", step, steps=steps)


def share(
    schedule: str,
    step: int,
    *,
    steps: int,
    warm_up: float = WARM_UP_SHARE,
    floor: float = FLOOR,
    cool_down: float = 0.4,
) -> float:
    """What part of the peak rate step `step` (from 0) of `steps` takes.

    All but one-cycle and cyclic rise linearly over the share `warm_up` of the steps. `cool_down`
    is the share in which warm-up-stable-decay falls; `floor` is what is left at the end.

    Raises:
        InvalidError: no schedule is called so.
    """
    if (curve := CURVES.get(schedule)) is None:
        raise InvalidError(f"schedule {schedule!r} is unknown; use one of {sorted(CURVES)}")
    rising = 0 if schedule in {"one-cycle", "cyclic"} else max(1, round(steps * warm_up))
    if step < rising:
        return (step + 1) / rising
    done = min(1.0, (step - rising) / max(1, steps - 1 - rising))
    return floor + (1 - floor) * curve(done, cool_down)


def _cosine(done: float, _: float) -> float:
    """Loshchilov & Hutter 2017 (SGDR), without restarts."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _one_cycle(done: float, _: float) -> float:
    """Smith & Topin 2018: half a cosine up over 30% of the steps, half a cosine down."""
    if done < 0.3:  # noqa: PLR2004 — the paper's share
        return _cosine(1 - done / 0.3, 0)
    return _cosine((done - 0.3) / 0.7, 0)


def _cyclic(done: float, _: float) -> float:
    """Smith 2017: triangles, from the floor up and back."""
    return 1 - abs(1 - 2 * ((done * CYCLES) % 1.0)) if done < 1 else 0.0


def _stable(done: float, cool_down: float) -> float:
    """Hägele et al. 2024: level, then a straight line down."""
    return min(1.0, (1 - done) / cool_down) if cool_down > 0 else 1.0


CURVES: dict[str, Callable[[float, float], float]] = {
    "cosine": _cosine,
    "warm-up": lambda _, __: 1.0,
    "one-cycle": _one_cycle,
    "cyclic": _cyclic,
    "polynomial": lambda done, _: (1 - done) ** 2,
    "warm-up-stable-decay": _stable,
}
"""Share of the way done (0 to 1), share to cool down → share of the peak above the floor."""
