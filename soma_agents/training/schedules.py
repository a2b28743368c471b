"""How the learning rate moves over a training run."""

import math

WARM_UP_SHARE = 0.06
"""Share of the steps in which the rate rises."""

FLOOR = 0.1
"""What is left of the peak at the last step."""


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """The rate of optimiser step `step` (from 0) of `steps`: linear warm-up, then a half cosine.

    The cosine is that of Loshchilov & Hutter 2017 (SGDR) without restarts, down to a tenth.
    """
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - 1 - warm_up))
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
