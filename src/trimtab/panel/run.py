"""Scoring a panel: the bare model and every arm on the same items."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.damage import token_kl
from trimtab.dials import Dial, VectorDial
from trimtab.errors import DataError, StudyError
from trimtab.evaluation import NeutralText, Sampling, alpha_at_kl, generate
from trimtab.pairs import PairSet
from trimtab.pairs.neutral import NEUTRAL
from trimtab.panel.options import Asked, Scored, pairs_of
from trimtab.panel.properties import ITEMS, Property, Reader
from trimtab.panel.values import Values
from trimtab.progress import SILENT, Progress
from trimtab.statistics import Difference, Verdict, judged, paired_difference
from trimtab.store import Store

PASSAGES = 12
"""Neutral passages on which KL is made equal: those of `evaluate` and `compare`."""
KL = 0.1
"""Mean KL in nats a token to which dials are turned so as to be compared, where nothing else is said: what
`calibrate` allows."""


@dataclass(frozen=True)
class Arm:
    """A model with a dial at a strength, or the bare model.

    Attributes:
        name: of the dial.
        dial: None is the bare model.
        alpha: its strength.
        at: `alpha_1`, `equal_kl`.
    """

    name: str
    dial: Dial | None = None
    alpha: float = 0.0
    at: str = "alpha_1"


@dataclass(frozen=True)
class Panel:
    """Properties with their items, for which no model is needed."""

    properties: tuple[Property, ...]
    items: dict[str, list[Any]]
    """Of each property, by name."""

    @cached_property
    def digest(self) -> str:
        """sha256 of all that its figures depend on but the model."""
        return hashlib.sha256(repr((self.properties, self.items)).encode()).hexdigest()

    @property
    def pairs(self) -> PairSet:
        """What is scored by log-probs, as pairs."""
        asked = [o for p in self.properties for o in p.asked(self.items[p.name])]
        return PairSet(pairs_of(asked, "panel"), "panel")


def read_items(
    panel: Sequence[Property], items: int = ITEMS, data_root: str | Path | None = None
) -> Panel:
    """The items of every property, before any model is loaded.

    Args:
        items: at most so many a property.
        data_root: folder of published data (default: TRIMTAB_DATA).

    Raises:
        DataError: data of a property are missing (which file, where it was looked for), or it has no items.
    """
    given = data_root or os.environ.get("TRIMTAB_DATA")
    root = Path(given).expanduser() if given else None
    found = {}
    for p in panel:
        try:
            found[p.name] = p.read(items, root)
        except DataError as error:
            text = str(error)
            own = f"panel: {p.name}: "
            raise DataError(text if text.startswith(own) else own + text) from error
        if not found[p.name]:
            raise DataError(f"panel: {p.name}: no items; give it some, or leave the property out")
    return Panel(tuple(panel), found)


Measured = dict[str, list[Values]]
"""Metrics by property."""


class PanelOn:
    """A panel on a model: its items as tokens, read on the bare model once and on every dial anew."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        panel: Panel,
        *,
        max_length: int = 1024,
        store: Store | None = None,
        progress: Progress = SILENT,
    ):
        """
        Raises:
            DataError: no item of a property fits.
        """
        self.model, self.tokenizer, self.store, self.progress = model, tokenizer, store, progress
        reader = Reader(model, tokenizer, max_length)
        self.ready = {p.name: p.prepared(panel.items[p.name], reader) for p in panel.properties}
        self.neutral = NeutralText(model, tokenizer, NEUTRAL[:PASSAGES])

    def arms(self, name: str, dial: Dial, kl: float = KL) -> list[Arm]:
        """A dial at α = 1, and at the α at which its KL on neutral text is `kl`, where it is reached."""
        found = alpha_at_kl(self.neutral, dial, kl, {})
        equal = [Arm(name, dial, float(f"{found[0]:.6g}"), "equal_kl")] if found else []
        return [Arm(name, dial, 1.0), *equal]

    def measure(self, arm: Arm) -> Measured:
        """Metrics of an arm, one property after the other."""
        on, found = _On(self, arm), {}
        label = f"{arm.name} at alpha {arm.alpha:.3g}" if arm.dial else arm.name
        for name, scoring in self.ready.items():
            self.progress.say(f"panel: {label}: {name}")
            found[name] = scoring.values(on)
            if not all(np.isfinite(v.values).all() for v in found[name]):
                raise StudyError(f"panel: {label}: {name}: not finite; turn the dial less")
        return found


@dataclass(frozen=True)
class _On:
    """An arm on a model: what properties are scored with."""

    panel: PanelOn
    arm: Arm
    bar: Callable[[int, int], None] | None = None

    def scored(self, asked: Asked) -> Scored:
        """Log-probs of options."""
        arm, on = self.arm, self.panel
        return asked.scored(on.model, arm.dial, arm.alpha, store=on.store, progress=self.bar)

    def texts(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """Greedy continuations, in the chat template where there is one."""
        arm, on = self.arm, self.panel
        how: Any = {"sampling": sampling, "prompt_style": "auto", "progress": self.bar}
        found = generate(on.model, on.tokenizer, list(prompts), arm.dial, [arm.alpha], **how)
        return [g.text for g in found]

    def token_kl(self, text: NeutralText) -> list[np.ndarray]:
        """KL(bare || dialled) at every token of every passage, in nats."""
        dial, found = self.arm.dial, []
        for index in range(len(text.ids)):
            base = text.log_probs(index)
            if dial is None or self.arm.alpha == 0:
                found.append(np.zeros(len(base)))
                continue
            with dial(self.panel.model, self.arm.alpha):
                new = text.log_probs(index)
            found.append(token_kl(base, new).clamp(min=0).double().cpu().numpy())
        return found


def measure(
    model: nn.Module,
    tokenizer: Any,
    panel: Sequence[Property] | Panel,
    arms: Sequence[Arm],
    *,
    items: int = ITEMS,
    data_root: str | Path | None = None,
    **how: Any,
) -> list[Measured]:
    """Metrics of every arm. All data are found before the first is scored.

    Args:
        how: as of `PanelOn`.

    Raises:
        DataError: data of a property are missing, or it has no items.
    """
    found = panel if isinstance(panel, Panel) else read_items(panel, items, data_root)
    on = PanelOn(model, tokenizer, found, **how)
    return [on.measure(arm) for arm in arms]


def of_any_base(dial: Dial) -> Dial:
    """The dial, whatever model it was made for."""
    found = copy.copy(dial)
    found.info = replace(dial.info, base_digest="")
    return found


def random_like(dial: Dial, seed: int = 0) -> VectorDial | None:
    """A vector dial's twin that means nothing: random directions as long as its own, at the same sites and
    tokens. None for another dial."""
    if not isinstance(dial, VectorDial) or dial.operator != "add":
        return None
    draw = torch.Generator().manual_seed(seed)
    steps = {site: dial.direction(site).detach().cpu() for site in dial.sites}
    other = {site: torch.randn(v.shape, generator=draw) for site, v in steps.items()}
    twin = VectorDial(other, dial.scales, positions=dial.positions, keep_norm=dial.keep_norm)
    twin.info = replace(dial.info, method="random", data={}, measured={})
    return twin


@dataclass(frozen=True)
class Change:
    """What an arm changes of a metric, beside the bare model.

    Attributes:
        property, metric: which.
        bare, dialled: the figure without and with the dial; of several seeds the first.
        difference: dialled less bare, paired by item.
        verdict: adjusted over the panel; None for a metric that is not judged.
        unit: of the figures; `points` are of a share.
    """

    property: str
    metric: str
    bare: Values
    dialled: Values
    difference: Difference
    verdict: Verdict | None
    unit: str


def careful(found: Difference, weights: np.ndarray | None, items: int) -> Difference:
    """A bootstrapped difference with the larger of its own p-value and that of a t-test: in the tail where
    Holm looks, a percentile bootstrap of 50 items calls nearly twice the nulls that it should."""
    from scipy.special import stdtr  # scipy.stats takes two seconds to import

    if not found.se > 0:
        return found
    size = items if weights is None else weights.sum() ** 2 / (weights**2).sum()
    return found._replace(p=max(found.p, 2 * float(stdtr(size - 1, -abs(found.value) / found.se))))


def changes(bare: Measured, *dialled: Measured) -> list[Change]:
    """One arm's panel, at a seed or at several, its verdicts adjusted by Holm over the metrics that are
    judged. `worse` is said of what the dial makes worse: of more bias as of less knowledge."""
    rows: list[tuple[str, Values, Values, Difference]] = []
    for name, metrics in dialled[0].items():
        for place, (theirs, mine) in enumerate(zip(bare[name], metrics, strict=True)):
            assert theirs.items == mine.items
            table = np.stack([seed[name][place].values for seed in dialled])
            found = paired_difference(table, theirs.values, mine.within, mine.weights)
            if len(dialled) == 1 and not np.isfinite(mine.within).all():
                found = careful(found, mine.weights, table.shape[1])
            rows.append((name, theirs, mine, found))
    told = [
        (d._replace(value=d.value * mine.better), len(dialled))
        for _, _, mine, d in rows
        if mine.better
    ]
    verdicts = iter(judged(told))
    return [
        Change(
            name, mine.metric, theirs, mine, d, next(verdicts) if mine.better else None, mine.unit
        )
        for name, theirs, mine, d in rows
    ]
