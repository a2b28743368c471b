"""Keeping small gradients from vanishing in float16: the loss is scaled up, gradients down again.

Dynamic loss scaling as in arXiv:1710.03740, section 3.2; the numbers are those of torch's
`GradScaler`, whose state would not go through our checkpoints.
"""

from dataclasses import dataclass, replace

FIRST, MOST = 2.0**16, 2.0**24
GROW_AFTER = 2_000
"""Steps without an overflow before the scale doubles."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What the loss is multiplied by, and for how many steps that went well."""

    factor: float = 1.0
    steps: int = 0

    def held(self) -> "Scale":
        """After a step whose gradients are finite."""
        if self.factor == 1.0:
            return self
        if self.steps + 1 < GROW_AFTER:
            return replace(self, steps=self.steps + 1)
        return Scale(min(2 * self.factor, MOST))

    def overflown(self) -> "Scale | None":
        """After one whose gradients are not, which is left out; None: it is not the scale."""
        return None if self.factor == 1.0 else Scale(max(self.factor / 2, 1.0))


def first_scale(precision: str) -> Scale:
    """What a run begins with; formats with float32's range need none."""
    return Scale(FIRST) if precision == "float16" else Scale()
