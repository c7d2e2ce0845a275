"""Ways from one value to the next, and a value whose target may change on the way."""

from __future__ import annotations

import math

import numpy as np

from trimtab.errors import ConfigError

SPACES = ("linear", "log")
TIMINGS = ("minjerk", "linear", "step")
LOG_FLOOR = 1e-10
"""In log space a value of 0 is taken as this."""


def minjerk(t: np.ndarray) -> np.ndarray:
    """10 t^3 - 15 t^4 + 6 t^5: from 0 to 1 at rest at both ends, with the least jerk."""
    return t**3 * (10 - 15 * t + 6 * t**2)


def warm_cosine(rate: float, step: int, steps: int, *, warm: float, last: float) -> float:
    """A learning rate that rises to `rate` over a share `warm` of the steps, then falls as a cosine to a
    share `last` of it."""
    count = max(1, int(steps * warm))
    if step < count:
        return rate * (step + 1) / count
    share = (step - count) / max(1, steps - count)
    return rate * (last + (1 - last) * (1 + math.cos(math.pi * share)) / 2)


class Reactive:
    """One value that moves smoothly to targets that may change at any time.

    Each new target starts a fresh fifth-degree polynomial from the present value, velocity and
    acceleration, at rest at its end: the path has no jump in any of the three. A duration of 0
    jumps; the same target again is ignored.
    """

    def __init__(self, value: float, timing: str = "minjerk", space: str = "linear"):
        """
        Args:
            value: where it starts, at rest.
            timing: `minjerk`, `linear`, or `step` (jumps at the end of the duration).
            space: `linear`, or `log` for values above 0.

        Raises:
            ConfigError: unknown timing or space.
        """
        if timing not in TIMINGS or space not in SPACES:
            raise ConfigError(
                f"timing {timing!r}, space {space!r}: expected one of {', '.join(TIMINGS)} and "
                f"of {', '.join(SPACES)}"
            )
        self.timing, self.space = timing, space
        self._now = (self._in(value), 0.0, 0.0)
        self._target = self._now[0]
        self._at, self._duration = 0, 0
        self._path = np.array([self._now[0], 0, 0, 0, 0, 0])

    @property
    def value(self) -> float:
        """The present value."""
        return self._out(self._now[0])

    @property
    def velocity(self) -> float:
        """Change a step (in log space: of the logarithm)."""
        return self._now[1]

    @property
    def acceleration(self) -> float:
        """Change of the velocity a step."""
        return self._now[2]

    def start(self, value: float, velocity: float = 0.0, acceleration: float = 0.0) -> None:
        """Be somewhere, moving, with no target ahead."""
        self._now = (self._in(value), velocity, acceleration)
        self._target, self._at, self._duration = self._now[0], 0, 0

    def set(self, target: float, duration: int) -> None:
        """Head for `target`, to be reached at rest after `duration` steps."""
        goal = self._in(target)
        if duration < 0:
            raise ConfigError(f"duration {duration}: expected 0 or more steps")
        if goal == self._target and self._at < self._duration:
            return
        self._target, self._at, self._duration = goal, 0, duration
        y0, v0, a0 = self._now
        if duration == 0:
            self._now = (goal, 0.0, 0.0)
            return
        if self.timing == "minjerk":
            c = np.array([y0, v0 * duration, a0 * duration**2 / 2])
            ends = np.array([[1.0, 1, 1], [3, 4, 5], [6, 12, 20]])
            wanted = np.array([goal - c.sum(), -c[1] - 2 * c[2], -2 * c[2]])
            self._path = np.concatenate([c, np.linalg.solve(ends, wanted)])
        else:
            self._path = np.array([y0, goal - y0, 0, 0, 0, 0])

    def step(self) -> float:
        """One step on the way; the value there."""
        if self._at < self._duration:
            self._at += 1
            if self._at == self._duration:
                self._now = (self._target, 0.0, 0.0)
            elif self.timing != "step":
                t, k = self._at / self._duration, self._path
                powers = t ** np.arange(6)
                first, second = np.polyder(k[::-1])[::-1], np.polyder(k[::-1], 2)[::-1]
                self._now = (
                    float(k @ powers),
                    float(first @ powers[:5]) / self._duration,
                    float(second @ powers[:4]) / self._duration**2,
                )
        return self.value

    def _in(self, value: float) -> float:
        return math.log(max(value, LOG_FLOOR)) if self.space == "log" else float(value)

    def _out(self, value: float) -> float:
        return math.exp(value) if self.space == "log" else value
