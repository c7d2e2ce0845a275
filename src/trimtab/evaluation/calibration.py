"""The range of a dial: how far it may be turned before it costs more than a budget."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trimtab.damage import Damage, NeutralText, alpha_at_kl
from trimtab.dials import Dial
from trimtab.errors import ConfigError

SLACK = 0.02
"""An alpha counts as the largest where its damage lies within this share below the budget."""


class End(NamedTuple):
    """One end of a dial's range.

    Attributes:
        alpha: the largest alpha, in size, that was measured to stay inside the budget.
        low, high: of the alphas at which text drawn anew would meet the budget, the middle 95 %.
        kl: mean KL(base || dialled) there, in nats a token.
        reached: whether the budget is reached within the alphas that were tried.
    """

    alpha: float
    low: float
    high: float
    kl: float
    reached: bool


@dataclass(frozen=True)
class Calibration:
    """What a dial may be turned to, in both directions."""

    budget: float
    down: End
    up: End
    passages: int
    text: str
    """sha256 of the passages."""

    def note(self) -> dict[str, Any]:
        """For `dial.json`."""
        return {
            "budget": f"kl={self.budget:g}",
            "alpha": [_short(self.down.alpha), _short(self.up.alpha)],
            "interval_down": [_short(self.down.low), _short(self.down.high)],
            "interval_up": [_short(self.up.low), _short(self.up.high)],
            "kl_nats_per_token": [_short(self.down.kl), _short(self.up.kl)],
            "reached": [self.down.reached, self.up.reached],
            "measured_on": f"{self.passages} held-out passages ({self.text[:12]})",
        }


def parse_budget(text: str) -> float:
    """`kl=0.1` as nats a token. Raises ConfigError for anything else."""
    name, equals, value = text.partition("=")
    try:
        budget = float(value)
    except ValueError:
        budget = float("nan")
    if name.strip() != "kl" or not equals or not 0 < budget < float("inf"):
        raise ConfigError(f"--budget {text}: expected kl=NATS above 0, for example kl=0.1")
    return budget


def calibrate(
    text: NeutralText,
    dial: Dial,
    budget: float,
    *,
    largest: float = 8.0,
    draws: int = 2000,
    seed: int = 0,
    force: bool = False,
) -> Calibration:
    """The largest alpha, up and down, whose damage on held-out text stays inside a budget.

    KL is measured where `alpha_at_kl` looks. The interval is a bootstrap over passages of the alpha
    at which the mean KL meets the budget, its root interpolated between the measured alphas.

    Args:
        budget: mean KL(base || dialled), in nats a token.
        largest: alphas beyond this are not tried.
        draws: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: a budget that is no number above 0, or fewer than two passages.
    """
    if not 0 < budget < float("inf"):
        raise ConfigError(f"a budget of {budget} nats a token; expected a number above 0")
    if len(text.ids) < 2:
        raise ConfigError("calibrating takes two passages of text or more, for the interval")
    sha = hashlib.sha256(repr([ids.tolist() for ids in text.ids]).encode()).hexdigest()
    ends = [_end(text, dial, sign, budget, largest, draws, seed, force) for sign in (-1.0, 1.0)]
    return Calibration(budget, ends[0], ends[1], len(text.ids), sha)


class _Measured(NeutralText):
    """Neutral text that notes what was measured, for a dial turned one way."""

    def __init__(self, text: NeutralText, sign: float, force: bool):
        self.text, self.sign, self.force = text, sign, force
        self.found: dict[float, np.ndarray] = {0.0: np.zeros(len(text.ids))}

    def damage(self, dial: Dial, alpha: float, *, force: bool = False) -> Damage:
        """Damage at the signed alpha."""
        damage = self.text.damage(dial, self.sign * alpha, force=self.force)
        self.found[alpha] = damage.kl
        return damage


def _end(
    text: NeutralText,
    dial: Dial,
    sign: float,
    budget: float,
    largest: float,
    draws: int,
    seed: int,
    force: bool,
) -> End:
    measured = _Measured(text, sign, force)
    # Aimed just below the budget, so that what is found lies inside.
    target = budget * (1 - SLACK / 2)
    alpha_at_kl(measured, dial, target, {}, largest=largest, tolerance=SLACK / 2, attempts=10)
    mean = {a: _finite(kl).mean() for a, kl in measured.found.items()}
    best = max(a for a, kl in mean.items() if kl <= budget)
    beyond = [a for a, kl in mean.items() if kl > budget]
    reached = bool(beyond or mean[best] >= budget * (1 - 2 * SLACK))
    low, high = _interval(measured.found, budget, largest, draws, seed)
    ends = sorted((sign * low, sign * high))
    return End(float(sign * best), ends[0], ends[1], float(mean[best]), reached)


def _interval(
    found: dict[float, np.ndarray], budget: float, largest: float, draws: int, seed: int
) -> tuple[float, float]:
    alphas = np.array(sorted(found))
    kl = np.stack([_finite(found[a]) for a in alphas])  # alpha passage
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(kl.shape[1], np.full(kl.shape[1], 1 / kl.shape[1]), size=draws)
    roots = np.sqrt(np.maximum(counts @ kl.T / kl.shape[1], 0.0))  # draw alpha
    meets = np.array([_meets(alphas, root, np.sqrt(budget), largest) for root in roots])
    low, high = np.quantile(meets, [0.025, 0.975])
    return float(low), float(high)


def _meets(alphas: np.ndarray, roots: np.ndarray, target: float, largest: float) -> float:
    """The alpha at which the root of KL, piecewise linear, first meets its target."""
    over = np.flatnonzero(roots >= target)
    if not len(over):  # go on as from 0 to the last
        return largest if roots[-1] <= 0 else min(largest, alphas[-1] * target / roots[-1])
    i = max(int(over[0]), 1)
    share = (target - roots[i - 1]) / max(roots[i] - roots[i - 1], 1e-12)
    return float(alphas[i - 1] + share * (alphas[i] - alphas[i - 1]))


def _finite(kl: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(kl), kl, 1e9)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def passages_of(text: str) -> Sequence[str]:
    """Paragraphs of a text file, an empty line between; those of fewer than 20 letters left out."""
    return [p.strip() for p in text.split("\n\n") if len(p.strip()) >= 20]
