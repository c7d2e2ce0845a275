"""How far a dial may be turned by a budget that has to hold at every strength that is measured: of the tail
of KL on what the dialled model itself says, or of a property of a panel.

Both are reported beside the mean KL on given text (`evaluation.calibrate`), which is smooth and comparable;
a tail on the model's own words sees the rare collapse that a mean does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import spans
from trimtab.damage import token_kl
from trimtab.dials import Dial
from trimtab.errors import ConfigError, ModelError, StudyError, near
from trimtab.evaluation import Sampling, generate
from trimtab.panel.properties import REQUESTS, Property
from trimtab.panel.run import Arm, PanelOn
from trimtab.panel.texts import read_requests
from trimtab.panel.values import Values
from trimtab.statistics import BOOTSTRAP_SEED, QUANTILES, paired_difference

ROLLOUT, PANEL = "kl_p95_rollout", "panel."
PROMPTS, TOKENS, QUANTILE = 32, 32, 0.95
"""Prompts at least, tokens of each answer, and the quantile of their KL."""
FIRST, HALVINGS = 0.25, 3
"""The first alpha that is tried; it is doubled until a budget is broken, then the gap halved so often."""
DRAWS = 1000


class Point(NamedTuple):
    """What was measured at a strength, with its 95 % interval."""

    alpha: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Held:
    """How far a budget holds, down and up.

    Attributes:
        budget: as it was given.
        alpha: the largest strengths, in size, up to which it held wherever it was measured.
        reached: whether a larger one broke it, down and up.
        points: what was measured, by alpha.
        measured_on: how much of what.
    """

    budget: str
    alpha: tuple[float, float]
    reached: tuple[bool, bool]
    points: tuple[Point, ...]
    measured_on: str

    def note(self) -> dict[str, Any]:
        """For `dial.json`."""
        rows = [
            [float(f"{x:.4g}") if math.isfinite(x) else None for x in point]
            for point in self.points
        ]
        return {
            **{"budget": self.budget, "alpha": list(self.alpha), "reached": list(self.reached)},
            **{"alpha_value_low_high": rows, "measured_on": self.measured_on},
        }

    def at(self, alpha: float) -> Point:
        """What was measured there."""
        return next(p for p in self.points if p.alpha == alpha)


Budget = tuple[str, float]
"""What it is of, and how much: `kl_p95_rollout` in nats; `panel.PROPERTY` or `panel.PROPERTY.METRIC`, how
much of it may be lost, in points of a share or else in its own unit, below 0."""


def parse_budget(text: str) -> Budget | None:
    """A budget of this file; None for mean KL, which `evaluation.parse_budget` knows.

    Raises:
        ConfigError: no budget, no number, or one of the wrong sign.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if name == "kl":
        return None
    if name != ROLLOUT and not name.startswith(PANEL):
        raise ConfigError(
            f"--budget {text}: expected kl=NATS above 0, for example kl=0.1, or {ROLLOUT}=NATS, or "
            f"{PANEL}PROPERTY=-POINTS{near(name, ('kl', ROLLOUT, PANEL))}"
        )
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    tail = name == ROLLOUT
    if not (0 < number < math.inf if tail else -math.inf < number < 0):
        expected = (
            "nats above 0, as in kl_p95_rollout=1.0"
            if tail
            else ("how much of the property may be lost, below 0, as in panel.knowledge=-2")
        )
        raise ConfigError(f"--budget {text}: expected {expected}")
    return name, number


def held(
    budget: str,
    measure: Callable[[float], Point],
    holds: Callable[[Point], bool],
    largest: float,
    on: str,
) -> Held:
    """The largest strengths up to which a budget holds at all that were measured.

    Raises:
        ConfigError: it holds at none, in either direction.
    """
    points, ends, reached = [], [], []
    for sign in (-1.0, 1.0):
        best, broken, alpha = 0.0, None, min(FIRST, largest)
        while broken is None:
            points.append(point := measure(sign * alpha))
            if not holds(point):
                broken = alpha
            elif (best := alpha) >= largest:
                break
            alpha = min(2 * alpha, largest)
        for _ in range(HALVINGS if broken else 0):
            points.append(point := measure(sign * (middle := (best + (broken or 0)) / 2)))
            best, broken = (middle, broken) if holds(point) else (best, middle)
        ends.append(sign * best if best else 0.0)
        reached.append(broken is not None)
    if not any(ends):
        least = min(points, key=lambda p: abs(p.alpha))
        raise ConfigError(
            f"--budget {budget}: no alpha from {abs(least.alpha):.3g} on meets it: at {least.alpha:.3g} it "
            f"is {least.value:.3g} [{least.low:.3g}, {least.high:.3g}]"
        )
    rows = tuple(sorted([*points, Point(0.0, 0.0, 0.0, 0.0)]))
    return Held(budget, (ends[0], ends[1]), (reached[0], reached[1]), rows, on)


# ---- the tail of KL on the dialled model's own words ----------------------------------------------


def rollout_range(
    model: nn.Module,
    tokenizer: Any,
    dial: Dial,
    nats: float,
    *,
    prompts: Sequence[str] = (),
    largest: float = 8.0,
) -> Held:
    """How far the 95th percentile of KL(dialled || bare), over the tokens of the dialled model's own greedy
    answers, stays within a budget. Prompts and the bootstrap's draws (over prompts) are the same at every
    alpha.

    Args:
        nats: the budget.
        prompts: at least 32 (default: the panel's requests); answers have 32 tokens.

    Raises:
        ConfigError: too few prompts, or a budget that no alpha meets.
    """
    prompts = prompts or [r.prompt for r in read_requests(REQUESTS)]
    if len(prompts) < PROMPTS:
        raise ConfigError(f"{len(prompts)} prompts; a tail takes {PROMPTS} or more")
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    counts = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=DRAWS)

    def measure(alpha: float) -> Point:
        try:
            kl = rollout_kl(model, tokenizer, dial, alpha, prompts)
        except ModelError:  # turned up until its logits are no numbers
            return Point(alpha, math.inf, math.inf, math.inf)
        value, *draws = tails(kl, np.vstack([np.ones(len(prompts), int), counts]))
        return Point(alpha, value, *(float(x) for x in np.quantile(draws, QUANTILES)))

    on = f"{len(prompts)} prompts, {TOKENS} tokens each, 95th percentile"
    return held(f"{ROLLOUT}={nats:g}", measure, lambda p: p.value <= nats, largest, on)


def rollout_kl(
    model: nn.Module, tokenizer: Any, dial: Dial, alpha: float, prompts: Sequence[str]
) -> list[np.ndarray]:
    """KL(dialled || bare) in nats at every token of the dialled model's greedy answer to each prompt."""
    sampling, found = Sampling(max_new_tokens=TOKENS), []
    device = next(model.parameters()).device
    for g in generate(model, tokenizer, list(prompts), dial, [alpha], sampling=sampling):
        ids = torch.tensor([[*g.before, *g.ids]], device=device)

        def log_probs(ids: Tensor = ids, start: int = len(g.before)) -> Tensor:
            with torch.no_grad(), models.reading(model), spans.prompts([start]):
                logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
            return logits.float().log_softmax(-1)

        bare = log_probs()
        with dial(model, alpha):
            own = log_probs()
        kl = torch.nan_to_num(token_kl(own, bare), nan=math.inf)
        found.append(kl.double().cpu().numpy())
    return found


def tails(kl: Sequence[np.ndarray], counts: np.ndarray) -> list[float]:
    """The 95th percentile of the tokens of all answers, each answer so often as each row of `counts` says."""
    tokens, of = np.concatenate(kl), np.repeat(np.arange(len(kl)), [len(k) for k in kl])
    if not len(tokens):
        return [0.0] * len(counts)
    order = np.argsort(tokens)
    summed = counts[:, of[order]].cumsum(1)
    at = (summed >= QUANTILE * summed[:, -1:]).argmax(1)
    return tokens[order][at].tolist()


# ---- a property of a panel ------------------------------------------------------------------------


def property_of(panel: Sequence[Property], name: str) -> tuple[Property, str]:
    """The property that a budget is of, and the metric if it names one.

    Raises:
        ConfigError: there is none of that name.
    """
    first, _, metric = name.removeprefix(PANEL).partition(".")
    known = {p.name: p for p in panel}
    if first not in known:
        raise ConfigError(
            f"--budget {name}: no property {first!r}{near(first, known)} ({', '.join(known)})"
        )
    return known[first], metric


def panel_range(
    on: PanelOn, dial: Dial, name: str, least: float, *, metric: str = "", largest: float = 8.0
) -> Held:
    """How far the lower end of what a dial changes of a property, for the better, stays at `least` or above.

    Args:
        name: of the property.
        least: below 0; in points where the metric is a share.
        metric: of the property; by default its first one that is judged.

    Raises:
        ConfigError: no such metric, too few items to say so at alpha = 0, or a budget that no alpha meets.
    """

    def read(arm: Arm) -> Values:
        judged = {v.metric: v for v in on.measure(arm)[name] if v.better}
        if (found := metric or next(iter(judged), "")) not in judged:
            raise ConfigError(
                f"--budget {PANEL}{name}.{metric}: not judged{near(metric, judged)} ({', '.join(judged)})"
            )
        return judged[found]

    bare = read(Arm("base"))
    scale = 100.0 if bare.unit == "points" else 1.0
    budget = f"{PANEL}{name}.{bare.metric}={least:g}"

    def change(alpha: float, mine: Values) -> Point:
        d = paired_difference(mine.values, bare.values, bare.within, bare.weights)
        ends = [scale * bare.better * x for x in (d.value, d.low, d.high)]
        ends = [ends[0] if math.isnan(x) else x for x in ends]
        return Point(alpha, ends[0], min(ends), max(ends))

    nothing = change(0.0, bare)
    if nothing.low < least:
        share = -least / scale / (bare.within[1] - bare.within[0])
        need = math.ceil(3.8415 * (1 - share) / share)
        raise ConfigError(
            f"--budget {budget}: too few items: with {len(bare.items)} even a dial at alpha 0 may have lost "
            f"{-nothing.low:.2g}; that takes about {need} (--panel-items)"
        )

    def measure(alpha: float) -> Point:
        try:
            return change(alpha, read(Arm("dial", dial, alpha)))
        except (ModelError, StudyError):  # turned up until its logits are no numbers
            return Point(alpha, -math.inf, -math.inf, -math.inf)

    found = held(
        budget,
        measure,
        lambda point: point.low >= least,
        largest,
        f"{len(bare.items)} items, bare model {scale * bare.mean:.4g}",
    )
    zero = [nothing if p.alpha == 0 else p for p in found.points]
    return Held(found.budget, found.alpha, found.reached, tuple(zero), found.measured_on)
