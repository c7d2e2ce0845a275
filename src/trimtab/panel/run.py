"""Scoring a panel: the bare model and every arm on the same items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.dials import Dial
from trimtab.evaluation import Sampling, generate
from trimtab.panel.options import Asked, Scored
from trimtab.panel.properties import ITEMS, Property, Reader
from trimtab.panel.values import Values
from trimtab.progress import SILENT, Progress
from trimtab.statistics import Difference, Verdict, judged, paired_difference
from trimtab.store import Store


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
class _On:
    """An arm on a model: what properties are scored with."""

    model: nn.Module
    tokenizer: Any
    arm: Arm
    store: Store | None
    bar: Callable[[int, int], None] | None = None

    def scored(self, asked: Asked) -> Scored:
        """Log-probs of options."""
        arm = self.arm
        return asked.scored(self.model, arm.dial, arm.alpha, store=self.store, progress=self.bar)

    def texts(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """Greedy continuations, in the chat template where there is one."""
        arm = self.arm
        found = generate(
            self.model,
            self.tokenizer,
            list(prompts),
            arm.dial,
            [arm.alpha],
            sampling=sampling,
            prompt_style="auto",
            progress=self.bar,
        )
        return [g.text for g in found]


Measured = dict[str, list[Values]]
"""Metrics by property."""


def measure(
    model: nn.Module,
    tokenizer: Any,
    panel: Sequence[Property],
    arms: Sequence[Arm],
    *,
    items: int = ITEMS,
    data_root: str | Path | None = None,
    max_length: int = 1024,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> list[Measured]:
    """Metrics of every arm, one property after the other. All data are found before the first is scored.

    Raises:
        DataError: data of a property are missing, or it has no items.
    """
    reader = Reader(model, tokenizer, items, Path(data_root) if data_root else None, max_length)
    ready = {p.name: p.prepared(reader) for p in panel}
    found: list[Measured] = []
    for arm in arms:
        on = _On(model, tokenizer, arm, store)
        label = f"{arm.name} at alpha {arm.alpha:g}" if arm.dial else arm.name
        of_arm: Measured = {}
        for name, scoring in ready.items():
            progress.say(f"panel: {label}: {name}")
            of_arm[name] = scoring.values(on)
        found.append(of_arm)
    return found


@dataclass(frozen=True)
class Change:
    """What an arm changes of a metric, beside the bare model.

    Attributes:
        property, metric: which.
        bare, dialled: the figure without and with the dial.
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


def changes(bare: Measured, dialled: Measured) -> list[Change]:
    """One arm's panel, its verdicts adjusted by Holm over the metrics that are judged. `worse` is said of
    what the dial makes worse: of more bias as of less knowledge."""
    rows: list[tuple[str, Values, Values, Difference]] = []
    for name, metrics in dialled.items():
        for theirs, mine in zip(bare[name], metrics, strict=True):
            assert theirs.items == mine.items
            found = paired_difference(mine.values, theirs.values, mine.within, mine.weights)
            rows.append((name, theirs, mine, found))
    told = [(d._replace(value=d.value * mine.better), 1) for _, _, mine, d in rows if mine.better]
    verdicts = iter(judged(told))
    return [
        Change(
            name, mine.metric, theirs, mine, d, next(verdicts) if mine.better else None, mine.unit
        )
        for name, theirs, mine, d in rows
    ]
