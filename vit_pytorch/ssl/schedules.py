"""Values that move with the step: teacher temperature, momentum, weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class LinearSchedule:
    """From `start` to `end` in equal steps, then constant (DINO's teacher temperature).

    Args:
        start: value at step 0.
        end: value at step `steps` and from then on.
        steps: length, at least 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a schedule has at least 1 step, got {self.steps}")

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class CosineSchedule(LinearSchedule):
    """From `start` to `end` along half a cosine, then constant (DINO's momentum and weight decay)."""

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        done = min(step / self.steps, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return self.value


def as_schedule(value: float | Schedule) -> Schedule:
    """Read a setting given as a number, which stays, or as a function of the step."""
    return value if callable(value) else Constant(float(value))
